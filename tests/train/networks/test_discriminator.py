"""The discriminator has the same inputs as the teacher's single blocks, and shares no weights with them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.hunyuan_video import concat_condition
from train.networks.discriminator import Discriminator
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import load_network
from train.networks.roles import BASE, RoleNetwork, add_branch, checkpoint_activations


def inputs(prompt) -> dict:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 2, 4, 4, generator=generator)
    condition = concat_condition(torch.randn(2, 16, 1, 4, 4, generator=generator), 2)
    return network_inputs(x, torch.tensor([0.9, 0.3]), condition, prompt)


def test_features_are_the_inputs_of_the_first_single_block(teacher_file: Path) -> None:
    teacher = load_checkpoint(teacher_file)
    network = load_network(teacher)
    seen = []
    network.single_transformer_blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given))
    with torch.no_grad():
        network(**inputs(teacher.null_prompt), return_dict=False)
        features = network.features(**inputs(teacher.null_prompt))
        copy = Discriminator(network, seed=0).block(features.video, features.text, *features.context)
        expected = network.single_transformer_blocks[0](*seen[0])
    torch.testing.assert_close(features.video, seen[0][0])
    torch.testing.assert_close(features.text, seen[0][1])
    torch.testing.assert_close(copy, expected)


def test_the_discriminator_shares_no_weights_with_the_teacher(teacher_file: Path) -> None:
    network = load_network(load_checkpoint(teacher_file)).requires_grad_(False)
    discriminator = Discriminator(network, seed=0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in discriminator.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_equal_seeds_make_equal_discriminators(teacher_file: Path) -> None:
    network = load_network(load_checkpoint(teacher_file))
    first, again, other = (Discriminator(network, seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_the_sample_gets_a_gradient_also_with_recomputed_blocks(teacher_file: Path) -> None:
    """They pass through the frozen base, whatever its last role, with and without activation checkpointing."""
    teacher = load_checkpoint(teacher_file)
    prompt = teacher.null_prompt
    gradients = []
    for recompute in (False, True):
        transformer = load_network(teacher)
        discriminator = Discriminator(transformer, seed=0, recompute=recompute)
        add_branch(transformer, "fake", 4, 4.0, seed=1)
        for key, parameter in transformer.named_parameters():
            if ".lora_B." in key:
                nn.init.ones_(parameter)
        if recompute:
            checkpoint_activations(transformer)
        network = RoleNetwork(transformer, prompt)
        given = inputs(prompt)
        x = given["hidden_states"][:, :16].clone().requires_grad_()
        features = network(x, torch.tensor([0.9, 0.3]), given["hidden_states"][:, 16:], BASE, features=True)
        (gradient,) = torch.autograd.grad(discriminator(features).sum(), x)
        gradients.append(gradient)
        assert all(parameter.grad is None for parameter in (*transformer.parameters(), *discriminator.parameters()))
        plain = load_network(teacher)
        alone = {**given, "hidden_states": torch.cat([x, given["hidden_states"][:, 16:]], dim=1)}
        (expected,) = torch.autograd.grad(discriminator(plain.features(**alone)).sum(), x)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_recomputed_discriminator_holds_only_the_features_and_has_equal_gradients(teacher_file: Path) -> None:
    teacher = load_checkpoint(teacher_file)
    network = load_network(teacher).requires_grad_(False)
    with torch.no_grad():
        features = network.features(**inputs(teacher.null_prompt))
    gradients, held = [], []
    for recompute in (False, True):
        discriminator = Discriminator(network, seed=0, recompute=recompute)
        kept: list[torch.Tensor] = []
        with saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor):
            logits = discriminator(features)
        logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in discriminator.named_parameters()})
        held.append(sum(tensor.numel() for tensor in kept))
    assert all(gradient.norm() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
    assert held[0] > 10 * features.video.numel()
    assert held[1] == 0


def test_a_teacher_without_single_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"discriminator .*single block.*w2s or dmd"):
        Discriminator(nn.Linear(1, 1), seed=0)
