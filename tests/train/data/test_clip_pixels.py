"""Resizing for CLIP, compared with transformers' processor for PIL images."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from train.data.clip_pixels import clip_pixels


@pytest.mark.parametrize(("rows", "columns"), [(300, 500), (517, 301), (90, 64), (336, 336)])
@pytest.mark.parametrize("middle", [True, False])
def test_pixels_are_those_of_the_processor(rows: int, columns: int, middle: bool) -> None:
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(rows))
    image = torch.nn.functional.interpolate(coarse, size=(rows, columns), mode="bilinear")
    levels = (image * 255).round().to(torch.uint8)
    size = {"shortest_edge": 336} if middle else {"height": 336, "width": 336}
    processor = CLIPImageProcessorPil(size=size, crop_size={"height": 336, "width": 336}, do_center_crop=middle)
    picture = Image.fromarray(levels[0].movedim(0, -1).numpy().astype(np.uint8))
    expected = processor(picture, return_tensors="pt").pixel_values
    found = clip_pixels(levels.float() / 255, 336, middle=middle)
    assert found.shape == expected.shape == (1, 3, 336, 336)
    # PIL's resizing rounds twice, so one level of 255 may differ; a level is 1 / 255 / std.
    assert (found - expected).abs().max() < 1.5 / 255 / 0.26
