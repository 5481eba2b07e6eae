"""Sound from tensors of every number type."""

import numpy as np
import pytest
import torch

from magicdistill_core.errors import VideoError
from magicdistill_core.media.audio import waveform_audio

WAVE = torch.linspace(-1, 1, 9)[None]


def samples(waveform: torch.Tensor) -> np.ndarray:
    """Return all samples of a waveform as the writer gets them."""
    return np.concatenate(list(waveform_audio(waveform, 8).chunks), axis=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.int32, torch.uint8])
def test_every_number_type_gives_the_same_sound(dtype: torch.dtype) -> None:
    typed = WAVE.to(dtype)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        typed = torch.linspace(limits.min, limits.max, 9, dtype=torch.float64).to(dtype)[None]
    found = samples(typed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, WAVE.numpy(), atol=0.02)


def test_what_an_encoder_refuses_becomes_sound_that_it_takes() -> None:
    found = samples(torch.tensor([[torch.nan, torch.inf, -torch.inf, 3.0, 0.5]]))
    assert found.tolist() == [[0, 1, -1, 1, 0.5]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_other_number_types_are_explained(dtype: torch.dtype) -> None:
    with pytest.raises(VideoError, match="real numbers"):
        waveform_audio(WAVE.to(dtype), 8)
