"""A bf16 network called in fp32, against the same network with its weights converted to fp32."""

import copy

import pytest
import torch
from torch import Tensor

from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO
from tests.makers import hunyuan_shape, random_prompt, seeded_network, wan_shape
from train.networks.fp32_calls import fp32_calls
from train.networks.roles import Role, RoleNetwork, add_branch, checkpoint_activations

FAMILIES = {
    "concat": (CONCAT, hunyuan_shape(refiner_blocks=2)),
    "token_replace": (TOKEN_REPLACE, hunyuan_shape(in_channels=16, guidance_embed=True)),
    "wan": (IMAGE_TO_VIDEO, wan_shape()),
}
SIGMA = torch.tensor([0.3, 0.9])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> tuple[RoleNetwork, RoleNetwork, tuple]:
    """A bf16 network with a branch, its fp32 copy with the same values, and the arguments of a call."""
    family: Family
    family, shape = FAMILIES[request.param]
    transformer = seeded_network(shape, family)
    add_branch(transformer, "fake", 4, 4.0, 0)
    for number, (name, parameter) in enumerate(transformer.named_parameters()):
        if ".lora_B." in name:
            parameter.data = 0.02 * random(*parameter.shape, seed=number)
    bf16 = transformer.bfloat16()
    checkpoint_activations(bf16)
    prompt = random_prompt(text_dim=16, pooled_dim=None if family is IMAGE_TO_VIDEO else 768)
    image = StartImage(
        random(2, 16, 2 if family is IMAGE_TO_VIDEO else 1, 4, 4, seed=1),
        random(2, *FEATURE_SHAPE, seed=2) if family is IMAGE_TO_VIDEO else None,
    )
    x = random(2, *family.free_shape((16, 2, 4, 4)), seed=3)
    wide = copy.deepcopy(bf16).float()
    networks = [RoleNetwork(network, prompt) for network in (bf16, wide)]
    return networks[0], networks[1], (x, SIGMA, family.condition(image, 2))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_calls_equal_an_fp32_network(case: tuple[RoleNetwork, RoleNetwork, tuple], weight: float) -> None:
    bf16, wide, arguments = case
    role = Role("fake", weight)
    with torch.no_grad():
        expected, rounded = wide(*arguments, role), bf16(*arguments, role)
    with fp32_calls():
        found = bf16(*arguments, role)
    assert distance(found, expected) < 1e-5
    assert distance(rounded, expected) > 1e-3
    assert {parameter.dtype for parameter in bf16.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(bf16(*arguments, role), rounded)


def test_the_difference_of_two_roles_is_what_fp32_makes_of_it(case: tuple[RoleNetwork, RoleNetwork, tuple]) -> None:
    """A branch so small that bf16 rounds its effect away: in fp32 the difference is the branch's again."""
    bf16, wide, arguments = case
    with torch.no_grad():
        for network in (bf16, wide):
            for name, parameter in network.named_parameters():
                if ".lora_B." in name:
                    parameter.mul_(2**-10)

    def difference(network: RoleNetwork) -> Tensor:
        return network(*arguments, Role("fake", 0.25)) - network(*arguments, Role("fake", 1.0))

    with torch.no_grad():
        expected, rounded = difference(wide), difference(bf16)
    with fp32_calls():
        found = difference(bf16)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99
    assert torch.cosine_similarity(rounded.flatten(), expected.flatten(), dim=0) < 0.7
