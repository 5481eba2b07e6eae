"""Comparisons of models on the same clips."""

import torch

from train.pocket.measuring.comparison import compare, shown_interval


def test_differences_are_paired_and_a_baseline_has_none_from_itself() -> None:
    clips = 10 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    rows = compare({"base": clips, "worse": clips + 1}, ["base"])
    assert rows["base"].differences == {}
    assert shown_interval(rows["worse"].differences["base"]) == "1.0000 [1.0000, 1.0000]"
    assert rows["base"].value.high - rows["base"].value.low > 4
