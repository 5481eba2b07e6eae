"""The compared variants compute the same result. With a GPU, also the variants that only a GPU can run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.attention import KERNELS, ON_CPU, FixedAttention, bare_attention, processors, set_processors
from benchmarks.cases import forward as forward_case
from benchmarks.harness import Bench, Row
from benchmarks.low_precision import FP8, Fp8Linear, StoredLinear, has_fp8_units, stored_bytes, with_linears
from benchmarks.machine import limits
from benchmarks.models import random_network, random_prompt
from benchmarks.sizes import POCKET

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def forward_on(device: torch.device) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    bench = Bench(device, False, lambda row: None)
    generator = bench.generator()
    network = random_network(POCKET, device, bench.dtype, generator)
    # With larger weights the blocks contribute more to the result.
    for parameter in network.parameters():
        parameter.mul_(3 if parameter.ndim > 1 else 1)
    prompt = random_prompt(POCKET, 8, device, generator)

    def run(chosen: nn.Module) -> Tensor:
        with torch.inference_mode():
            return forward_case.forward_of(bench, chosen, prompt, bench.sizes.small)()

    return network, run


def relative(out: Tensor, reference: Tensor) -> float:
    return ((out.float() - reference.float()).norm() / reference.float().norm()).item()


def attentions_agree(device: torch.device, names: list[str], tolerance: float) -> None:
    network, run = forward_on(device)
    ours = processors(network)
    expected = run(network)
    for name in names:
        set_processors(network, [FixedAttention(name)] * len(ours))
        assert relative(run(network), expected) < tolerance, name


def linears_agree(device: torch.device, kinds: dict[Callable[[nn.Linear], nn.Module], float]) -> None:
    network, run = forward_on(device)
    expected = run(network)
    for kind, tolerance in kinds.items():
        twin = with_linears(network, kind)
        assert 0 < relative(run(twin), expected) < tolerance
        assert stored_bytes(twin) < stored_bytes(network)
    torch.testing.assert_close(run(network), expected)


def test_attention_back_ends_agree() -> None:
    attentions_agree(CPU, [name for name, (kernel, _) in KERNELS.items() if kernel in ON_CPU], 1e-5)


@needs_gpu
def test_attention_back_ends_agree_on_the_gpu() -> None:
    attentions_agree(torch.device("cuda", 0), list(KERNELS), 3e-2)


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda", 0), marks=needs_gpu)], ids=str)
def test_bare_attention_is_the_formula(device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    query, key, value = (torch.randn(1, 264, 2, 128, device=device, dtype=dtype, generator=generator) for _ in range(3))
    mask = torch.ones(1, 1, 1, 264, device=device, dtype=torch.bool)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) / 128**0.5
    expected = torch.einsum("bhqk,bkhd->bhqd", scores.softmax(-1), value.double())
    for name, (kernel, _) in KERNELS.items():
        if on_gpu or kernel in ON_CPU:
            assert relative(bare_attention(name, query, key, value, mask)(), expected) < (1e-2 if on_gpu else 1e-5)


def test_linears_stored_in_eight_bits_are_near() -> None:
    linears_agree(
        CPU, {lambda linear: StoredLinear(linear, FP8): 0.1, lambda linear: StoredLinear(linear, torch.int8): 0.05}
    )


@pytest.mark.skipif(not has_fp8_units(torch.device("cuda" if torch.cuda.is_available() else "cpu")), reason="needs fp8")
def test_products_in_fp8_are_near() -> None:
    linears_agree(torch.device("cuda", 0), {Fp8Linear: 0.15})


def test_only_the_blocks_large_linears_are_replaced() -> None:
    network, _ = forward_on(CPU)
    twin = with_linears(network, lambda linear: StoredLinear(linear, torch.int8))
    replaced = {name for name, module in twin.named_modules() if isinstance(module, StoredLinear)}
    assert len(replaced) == POCKET.double_blocks * 12 + POCKET.single_blocks * 5
    assert twin.x_embedder.proj.weight is network.x_embedder.proj.weight
    assert not any(isinstance(module, StoredLinear) for module in network.modules())


def test_one_forward_costs_what_its_products_and_attentions_cost() -> None:
    rows: list[Row] = []
    bench = Bench(CPU, False, rows.append)
    bench.machine = limits(bench)
    network, _ = forward_on(CPU)
    prompt = random_prompt(POCKET, 8, CPU, bench.generator())
    with torch.inference_mode():
        forward_case._sizes(bench, network, prompt)
    assert [row["case"] for row in rows] == [clip.name for clip in bench.sizes.clips]
    # Below this range the forward is wrong; above it the computed FLOP are wrong.
    assert all(0.005 < row["of_matmul"] < 1.5 for row in rows)
