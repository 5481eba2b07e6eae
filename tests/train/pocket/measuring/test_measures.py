"""Energy scores of samples in latents and in decoded pixels."""

import pytest
import torch

from magicdistill_core.metrics.energy_score import energy_scores
from magicdistill_core.pocket.files import VAE
from train.data.vae import load_vae
from train.pocket.measuring.held_out import HeldOut, decode
from train.pocket.measuring.measures import Measures


def test_without_a_reader_the_measures_are_energy_scores() -> None:
    """Pixels are compared with the clips as the VAE shows them: samples that are the truths score 0 in both."""
    latents = torch.randn(2, 2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    truths = latents[:, 0]
    held = HeldOut(truths[:, :, :1], truths, truths[:, None].expand_as(latents))
    vae = load_vae(VAE)
    measures = Measures(held, vae, None)
    found, sheet = measures.of_samples(latents)
    assert found.keys() == {"energy_latents", "energy_pixels"}
    assert found["energy_latents"] == pytest.approx(energy_scores(latents, truths).tolist(), abs=1e-5)
    frames = decode(vae, latents.flatten(0, 1)).unflatten(0, (2, 2))
    assert found["energy_pixels"] == pytest.approx(energy_scores(frames, frames[:, 0]).tolist(), abs=1e-3)
    assert sheet.width > sheet.height / 2
    assert measures.of_data()[0] == {"energy_latents": [0, 0], "energy_pixels": [0, 0]}
