"""Networks whose video tokens are shared by 2 and 4 processes equal the same networks on one process.

Velocities, logits, and the gradients of weights and inputs are compared. The tokens (18) do not divide by 4, and the
clean first frame of token replacement (6 tokens) ends inside the second of four shards.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import Family
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.families.wan import IMAGE_TO_VIDEO
from tests.makers import hunyuan_shape, seeded_network, wan_shape
from tests.train.networks.test_network import batch_of, ragged_prompts
from train.distributed import ContextGroup, context_group, rank, world_size
from train.networks.context_parallel import check_degree
from train.networks.discriminator import Discriminator
from train.networks.families import kind_of
from train.networks.prompts import Captioned, stack_prompts
from train.networks.roles import BASE, Role, RoleNetwork, add_branch, checkpoint_activations

FAMILIES = {"concat": CONCAT, "token_replace": TOKEN_REPLACE, "wan": IMAGE_TO_VIDEO}
Values = dict[str, Tensor]


def network_of(family: Family, heads: int, group: ContextGroup | None) -> Any:
    """A network of one family, with one block of each kind."""
    hidden = 128 * heads
    if family is IMAGE_TO_VIDEO:
        network = seeded_network(wan_shape(hidden=hidden, blocks=1), family)
    else:
        network = seeded_network(hunyuan_shape(in_channels=family.in_channels, hidden=hidden), family)
    if group is not None:
        kind_of(network).share(network, group)
    return network


def computed(module: nn.Module, x: Tensor, output: Tensor, share: int) -> Values:
    """The output, and its loss's gradients: of this process's input, and the mean over the processes for weights."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    (output * weights).sum().backward()
    assert x.grad is not None
    values = {"output": output.detach(), "input": x.grad}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            if share > 1:
                dist.all_reduce(parameter.grad)
            values[name] = parameter.grad / share
    return values


def velocities(name: str, heads: int, group: ContextGroup | None, captions: bool) -> Values:
    """The velocity of a network all of whose weights are trained, with ragged prompts or one prompt."""
    family = FAMILIES[name]
    network = network_of(family, heads, group)
    prompts = ragged_prompts(pooled_dim=None if name == "wan" else 768)
    x, sigma, condition = batch_of(family)
    given: Any = Captioned(condition, stack_prompts(prompts)) if captions else condition
    output = RoleNetwork(network, prompts[0])(x.requires_grad_(), sigma, given, BASE)
    return computed(network, x, output, world_size())


def branch(name: str, heads: int, group: ContextGroup | None, keep_attention: bool) -> Values:
    """The velocity of a frozen network with a branch and recomputed activations."""
    network = network_of(FAMILIES[name], heads, group)
    add_branch(network, "fake", 4, 8.0, seed=3)
    generator = torch.Generator().manual_seed(4)
    for key, parameter in network.named_parameters():
        if ".lora_B." in key:
            parameter.data.normal_(std=0.1, generator=generator)
    checkpoint_activations(network.train(), keep_attention)
    x, sigma, condition = batch_of(FAMILIES[name])
    prompt = ragged_prompts(pooled_dim=None if name == "wan" else 768)[0]
    output = RoleNetwork(network, prompt)(x.requires_grad_(), sigma, condition, Role("fake", 0.5))
    return computed(network, x, output, world_size())


def logits(name: str, heads: int, group: ContextGroup | None, recompute: bool) -> Values:
    """The discriminator's logits on features of a frozen network, with ragged prompts."""
    network = network_of(FAMILIES[name], heads, group).requires_grad_(False)
    discriminator = Discriminator(network, seed=5, recompute=recompute)
    x, sigma, condition = batch_of(FAMILIES[name])
    prompts = ragged_prompts()
    given = Captioned(condition, stack_prompts(prompts))
    features = RoleNetwork(network, prompts[0])(x.requires_grad_(), sigma, given, BASE, features=True)
    return computed(discriminator, x, discriminator(features), world_size())


ROOT = Path(__file__).resolve().parents[3]
CASES: dict[str, Callable[[int, ContextGroup | None], Values]] = {
    "concat ragged": lambda heads, group: velocities("concat", heads, group, captions=True),
    "token_replace": lambda heads, group: velocities("token_replace", heads, group, captions=False),
    "wan ragged": lambda heads, group: velocities("wan", heads, group, captions=True),
    "concat branch": lambda heads, group: branch("concat", heads, group, keep_attention=False),
    "token_replace branch": lambda heads, group: branch("token_replace", heads, group, keep_attention=True),
    "concat logits": lambda heads, group: logits("concat", heads, group, recompute=False),
    "token_replace logits": lambda heads, group: logits("token_replace", heads, group, recompute=True),
}
# By the number of processes.
CHOSEN = {2: tuple(CASES), 4: ("concat ragged", "token_replace", "token_replace logits")}


def results(group: ContextGroup | None, size: int) -> dict[str, Values]:
    """The results of the cases for `size` processes. The networks have as many heads."""
    return {name: CASES[name](size, group) for name in CHOSEN[size]}


def work(number: int, size: int, port: int, folder: Path) -> None:
    """Compute all cases as one of `size` processes that share every sample."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=size)
    group = context_group(size)
    assert group is not None
    assert (group.size, group.rank, rank()) == (size, number, number)
    torch.save(results(group, size), folder / f"{number}.pt")
    dist.destroy_process_group()


def start(size: int, folder: Path) -> None:
    """Start `size` processes that share one import of all modules, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(number, size, port, folder)) for number in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", CHOSEN)
def test_shared_tokens_change_nothing(tmp_path: Path, size: int) -> None:
    # In a process of its own: this one may be in a group already, after a training in another test.
    subprocess.run(
        [sys.executable, __file__, str(size), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=250,
        check=True,
    )
    alone = results(None, size)
    for number in range(size):
        shared = torch.load(tmp_path / f"{number}.pt")
        for case, expected in alone.items():
            assert shared[case].keys() == expected.keys()
            assert expected["output"].std() > 1e-3
            # Not below the rounding of the largest tensor: a key's bias has no true gradient.
            floor = 1e-3 * max(float(value.norm()) for value in expected.values())
            for name, value in expected.items():
                assert value.norm() > 0, (case, name)
                assert (shared[case][name] - value).norm() <= 1e-4 * max(float(value.norm()), floor), (case, name)


@pytest.mark.parametrize(
    ("degree", "processes", "heads", "fault"),
    [
        (3, 8, 24, r"8 processes, which 3 does not divide.*allow 1, 2, 4, 8"),
        (8, 16, 12, r"teacher\.safetensors has 12 attention heads, which 8 does not divide.*allow 1, 2, 4\."),
        (2, 1, 24, "1 processes"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused(degree: int, processes: int, heads: int, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"context_parallel is {degree}, .*{fault}"):
        check_degree(degree, processes, heads, "teacher.safetensors")
    check_degree(1, processes, heads, "teacher.safetensors")


if __name__ == "__main__":
    start(int(sys.argv[1]), Path(sys.argv[2]))
