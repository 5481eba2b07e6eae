import pytest
import torch

from magicdistill_core.int8 import quantise_rows


def test_rows_are_rounded_to_the_nearest_of_their_own_levels() -> None:
    weight = torch.randn(300, 70, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 300)[:, None]
    weight[7] = 0
    quantised, scale = quantise_rows(weight)
    assert (quantised.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (300, 1))
    assert (quantised * scale - weight).abs().le(0.5001 * scale).all()
    largest = quantised.int().abs().amax(1)
    assert largest[torch.arange(300) != 7].eq(127).all()
    assert largest[7] == 0


def test_rows_do_not_depend_on_how_many_fit_into_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = quantise_rows(weight)
    monkeypatch.setattr("magicdistill_core.int8.VALUES_AT_A_TIME", 100)
    assert all(torch.equal(a, b) for a, b in zip(quantise_rows(weight), whole, strict=True))
