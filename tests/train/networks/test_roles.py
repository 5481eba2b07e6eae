"""Roles of one network: a recomputed block uses the role of its forward, not the role at the time of the backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.makers import hunyuan_shape, random_prompt
from train.networks.network import build_network
from train.networks.roles import BASE, Role, RoleNetwork, RoleSwitch, add_branch, checkpoint_activations

SHAPE = hunyuan_shape(double_blocks=2, single_blocks=2)
BRANCHES = ("generator", "fake")


def _network() -> RoleNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = build_network(SHAPE)
        for number, name in enumerate(BRANCHES):
            add_branch(transformer, name, 4, 8.0, number)
        for name, parameter in transformer.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return RoleNetwork(transformer.train(), random_prompt())


def _gradients(
    checkpointing: bool, keep_attention: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Velocities of each role, and the gradients of their sum, computed while the network is in yet another role."""
    network = _network()
    if checkpointing:
        checkpoint_activations(network.transformer, keep_attention)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    condition = torch.randn(1, 17, 2, 4, 4, generator=generator)
    roles = {"generator": Role("generator", 1.0), "weak": Role("fake", 0.25), "strong": Role("fake", 1.0), "base": BASE}
    velocities = {name: network(x, torch.tensor([0.5]), condition, role) for name, role in roles.items()}
    loss = sum(velocity.pow(2).mean() for velocity in velocities.values())
    switch = RoleSwitch(network.transformer)
    with switch.held(switch.state_of(Role("generator", 3.0))):
        loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    return {name: velocity.detach() for name, velocity in velocities.items()}, gradients


@pytest.mark.parametrize("keep_attention", [False, True])
def test_activation_checkpointing_does_not_change_gradients(keep_attention: bool) -> None:
    velocities, gradients = _gradients(True, keep_attention)
    plain_velocities, plain_gradients = _gradients(checkpointing=False)
    torch.testing.assert_close(velocities, plain_velocities, atol=0, rtol=0)
    assert {name.split(".")[-2] for name in gradients} == set(BRANCHES)
    assert all(gradient.norm() > 0 for gradient in plain_gradients.values())
    torch.testing.assert_close(gradients, plain_gradients, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("keep_attention", "times"), [(False, 2), (True, 1)])
def test_attention_is_recomputed_unless_it_is_kept(keep_attention: bool, times: int) -> None:
    network = _network()
    checkpoint_activations(network.transformer, keep_attention)
    calls: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    x, condition = torch.zeros(1, 16, 2, 4, 4), torch.zeros(1, 17, 2, 4, 4)
    with Watch():
        network(x, torch.tensor([0.5]), condition, Role("fake", 1.0)).sum().backward()
    attention = [name for name in calls if "scaled_dot_product" in name and "backward" not in name]
    blocks = SHAPE.double_blocks + SHAPE.single_blocks
    assert len(attention) == SHAPE.refiner_blocks + times * blocks


def test_backward_leaves_the_role_as_it_found_it() -> None:
    network = _network()
    checkpoint_activations(network.transformer)
    switch = RoleSwitch(network.transformer)
    before = switch.state()
    x, condition = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 17, 2, 4, 4)
    network(x, torch.tensor([0.5]), condition, Role("fake", 0.25)).mean().backward()
    assert switch.state() == before


def test_at_weight_0_no_branch_is_computed() -> None:
    """The real score of plain DMD equals the teacher to the bit, at the same cost."""
    network = _network()
    products: list[torch.nn.Module] = []
    for name, module in network.named_modules():
        if ".lora_A." in name:
            module.register_forward_hook(lambda module, *_: products.append(module))
    x, condition = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 17, 2, 4, 4)
    with torch.no_grad():
        teacher = network(x, torch.tensor([0.5]), condition, BASE)
        real = network(x, torch.tensor([0.5]), condition, Role("fake", 0.0))
        assert not products
        network(x, torch.tensor([0.5]), condition, Role("fake", 0.25))
    assert products
    assert torch.equal(real, teacher)
