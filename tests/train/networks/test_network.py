"""The trainer's HunyuanVideo network equals diffusers' own, and prompts of a batch do not see each other's padding."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

from magicdistill_core.families.base import Family, NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO
from tests.makers import hunyuan_shape, random_prompt, seeded_network, wan_shape
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import build_network, call_inputs, network_velocity
from train.networks.prompts import Captioned, PromptBatch, stack_prompts
from train.networks.roles import BASE, RoleNetwork, checkpoint_activations

SHAPE = hunyuan_shape(single_blocks=2)


def _networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our network, and diffusers' own network with the same weights."""
    ours = seeded_network(SHAPE)
    return ours, stock_network(ours)


def stock_network(ours: torch.nn.Module) -> torch.nn.Module:
    """A network of diffusers alone, with the weights of ours."""
    stock = HunyuanVideoTransformer3DModel.from_config(ours.config)
    assert type(stock) is HunyuanVideoTransformer3DModel
    stock.load_state_dict(ours.state_dict())
    return stock


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, NullPrompt]:
    generator = torch.Generator().manual_seed(1)
    prompt = NullPrompt(torch.randn(1, 5, 16, generator=generator), torch.randn(1, 768, generator=generator))
    x = torch.randn(2, 16, 2, 4, 6, generator=generator)
    condition = torch.randn(2, 17, 2, 4, 6, generator=generator)
    return x, torch.tensor([0.9375, 0.3]), condition, prompt


def test_attention_without_a_mask_is_diffusers_own() -> None:
    """Without padding, velocities and gradients equal those of diffusers' masked attention."""
    ours, stock = _networks()
    inputs = network_inputs(*_inputs())
    assert inputs["encoder_attention_mask"] is None
    everything = {"encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool)}
    velocities = [ours(**inputs, return_dict=False)[0], stock(**inputs | everything, return_dict=False)[0]]
    assert velocities[1].std() > 0.1
    torch.testing.assert_close(*velocities, atol=1e-6, rtol=1e-6)
    for velocity in velocities:
        velocity.square().mean().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_no_block_hands_a_mask_to_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: object, **settings: object) -> torch.Tensor:
        if query.shape[2] > 5:  # not the prompt's own refiner
            masks.append(settings.get("attn_mask"))
        return attention(query, *args, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    x, sigma, condition, prompt = _inputs()
    with torch.no_grad():
        network_velocity(build_network(SHAPE), condition, prompt)(x, sigma)
    assert masks == [None] * (SHAPE.double_blocks + SHAPE.single_blocks)


LENGTHS = (5, 2, 3)


def ragged_prompts(text_dim: int = 16, pooled_dim: int | None = 768) -> list[NullPrompt]:
    """Prompts of different lengths."""
    return [random_prompt(tokens, text_dim, pooled_dim, seed=tokens) for tokens in LENGTHS]


def batch_of(family: Family, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, object]:
    """Noisy frames, noise levels and the conditioning on start images for three samples."""
    generator = torch.Generator().manual_seed(seed)
    kept = family.kept_frames
    x = torch.randn(3, 16, 3 - kept, 4, 6, generator=generator)
    if family is IMAGE_TO_VIDEO:
        condition: object = (
            torch.randn(3, 20, 3, 4, 6, generator=generator),
            torch.randn(3, *FEATURE_SHAPE, generator=generator),
        )
    elif family is TOKEN_REPLACE:
        condition = torch.randn(3, 16, 1, 4, 6, generator=generator)
    else:
        condition = torch.randn(3, 17, 3, 4, 6, generator=generator)
    return x, torch.tensor([0.9375, 0.3, 0.6]), condition


def row(condition: object, number: int) -> object:
    """The condition of one sample."""
    if isinstance(condition, tuple):
        return tuple(tensor[number : number + 1] for tensor in condition)
    assert isinstance(condition, torch.Tensor)
    return condition[number : number + 1]


def network_of(family: Family) -> nn.Module:
    shape = wan_shape() if family is IMAGE_TO_VIDEO else hunyuan_shape(in_channels=family.in_channels, single_blocks=2)
    return seeded_network(shape, family)


@pytest.mark.parametrize("family", [CONCAT, TOKEN_REPLACE, IMAGE_TO_VIDEO], ids=["concat", "token_replace", "wan"])
def test_a_batch_of_ragged_prompts_equals_single_calls(family: Family) -> None:
    """Also if the padding holds anything: for HunyuanVideo, no token attends to it."""
    network = network_of(family)
    prompts = ragged_prompts(pooled_dim=None if family is IMAGE_TO_VIDEO else 768)
    stacked = stack_prompts(prompts)
    x, sigma, condition = batch_of(family)
    with torch.no_grad():
        together = network_velocity(network, condition, stacked)(x, sigma)
        alone = [
            network_velocity(network, row(condition, n), prompt)(x[n : n + 1], sigma[n : n + 1])
            for n, prompt in enumerate(prompts)
        ]
        others = [
            network_velocity(network, row(condition, n), prompts[n - 1])(x[n : n + 1], sigma[n : n + 1])
            for n in range(len(prompts))
        ]
        torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=2e-6)
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(alone, others, strict=True))
        if family is not IMAGE_TO_VIDEO:
            assert stacked.shown is not None
            noisy = stacked.text_states + 9 * ~stacked.shown[..., None]
            again = network_velocity(network, condition, PromptBatch(noisy, stacked.shown, stacked.pooled))(x, sigma)
            torch.testing.assert_close(again, together, atol=2e-6, rtol=2e-6)


def test_ragged_prompts_equal_diffusers_masked_call() -> None:
    ours, stock = _networks()
    x, sigma, condition = batch_of(CONCAT)
    inputs = network_inputs(x, sigma, condition, stack_prompts(ragged_prompts()))
    velocities = [network(**inputs, return_dict=False)[0] for network in (ours, stock)]
    torch.testing.assert_close(*velocities, atol=1e-6, rtol=1e-6)


def test_recomputed_activations_see_the_padding_of_their_own_forward() -> None:
    """Gradients of a padded and an unpadded call, whose backward passes run later, in one graph."""
    x, sigma, condition = batch_of(CONCAT)
    ragged = Captioned(condition, stack_prompts(ragged_prompts()))
    gradients = []
    for recompute in (False, True):
        network = network_of(CONCAT).train()
        if recompute:
            checkpoint_activations(network)
        roles = RoleNetwork(network, random_prompt())
        padded, plain = roles(x, sigma, ragged, BASE), roles(x, sigma, condition, BASE)
        (padded.square().mean() + plain.square().mean()).backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, plain_gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain_gradient, atol=1e-7, rtol=1e-5, msg=name)


def test_each_sample_has_its_own_prompt_and_unconditional_calls_have_the_negative_one() -> None:
    network = network_of(CONCAT)
    null, negative = random_prompt(seed=11), random_prompt(seed=12)
    roles = RoleNetwork(network, null, negative)
    x, sigma, condition = batch_of(CONCAT)
    prompts, negatives = stack_prompts(ragged_prompts()), stack_prompts(ragged_prompts()[::-1])
    assert isinstance(condition, torch.Tensor)

    def expected(prompt: NullPrompt | PromptBatch) -> torch.Tensor:
        return network(**call_inputs(network, x, sigma, condition, prompt), return_dict=False)[0]

    with torch.no_grad():
        given = Captioned(condition, prompts)
        assert torch.equal(roles(x, sigma, condition, BASE), expected(null))
        assert torch.equal(roles(x, sigma, given, BASE), expected(prompts))
        assert torch.equal(roles(x, sigma, given, BASE, unconditional=True), expected(negative))
        own = Captioned(condition, prompts, negatives)
        assert torch.equal(roles(x, sigma, own, BASE, unconditional=True), expected(negatives))


def test_prompts_of_equal_length_need_no_mask() -> None:
    stacked = stack_prompts([random_prompt(seed=1), random_prompt(seed=2)])
    assert stacked.shown is None
    assert stacked.text_states.shape == (2, 3, 16)
