"""Clip measures on clips with known results."""

import torch

from magicdistill_core.metrics.clips import latent_statistics, motion, sharpness


def test_motion_is_the_change_between_frames() -> None:
    ramp = torch.arange(5.0).reshape(1, 5, 1, 1, 1).expand(2, 5, 3, 4, 4) * torch.tensor([0.1, 0.0]).reshape(
        2, 1, 1, 1, 1
    )
    torch.testing.assert_close(motion(ramp), torch.tensor([0.1, 0.0]))


def test_blur_lowers_sharpness_and_a_plane_has_none() -> None:
    noise = torch.rand(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise[0], 3, 1, 1)[None]
    assert sharpness(noise) > 2 * sharpness(blurred)
    plane = torch.arange(16.0).expand(1, 1, 1, 16, 16)
    torch.testing.assert_close(sharpness(plane), torch.zeros(1))


def test_latent_statistics_are_per_channel() -> None:
    latents = torch.randn(3, 4, 5, 6, 6, generator=torch.Generator().manual_seed(1))
    features = latent_statistics(latents)
    assert features.shape == (3, 12)
    torch.testing.assert_close(features[1, 2], latents[1, 2].mean())
    torch.testing.assert_close(features[1, 4 + 2], latents[1, 2].std())
    torch.testing.assert_close(features[1, 8 + 2], latents[1, 2].diff(dim=0).abs().mean())
