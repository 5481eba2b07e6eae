import pytest
import torch

from magicdistill_core.branch import LowRank, branch_scale, merge, split, stack
from magicdistill_core.errors import CheckpointError


def low_rank(rows: int, columns: int, rank: int, alpha: float, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=generator)
    return LowRank(down, torch.randn(rows, rank, generator=generator), alpha)


def test_delta_is_weight_times_alpha_over_rank() -> None:
    branch = low_rank(6, 5, rank=4, alpha=2.0)
    assert branch_scale(0.25, 2.0, 4) == 0.125
    assert torch.equal(branch.delta(0.25), 0.125 * (branch.up @ branch.down))
    assert (branch.rank, branch.factor) == (4, 0.5)
    assert torch.count_nonzero(branch.delta(0.0)) == 0


def test_merge_adds_to_its_modules_only_and_leaves_the_base_alone() -> None:
    state = {"a.weight": torch.ones(6, 5), "a.bias": torch.ones(6), "b.weight": torch.ones(2, 2)}
    branch = low_rank(6, 5, rank=2, alpha=2.0)
    merged = merge(state, {"a": branch}, 0.5)
    assert torch.allclose(merged["a.weight"], 1 + 0.5 * branch.up @ branch.down)
    assert merged["a.bias"] is state["a.bias"]
    assert merged["b.weight"] is state["b.weight"]
    assert torch.equal(state["a.weight"], torch.ones(6, 5))


def test_merge_sums_in_float32_and_keeps_the_dtype() -> None:
    base = torch.full((4, 4), 1.0, dtype=torch.bfloat16)
    down, up = torch.full((1, 4), 2**-5), torch.full((4, 1), 2**-3)  # delta 2^-8: half a bf16 step at 1
    merged = merge({"a.weight": base}, {"a": LowRank(down, up, 1.0)}, 3.0)["a.weight"]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.full((4, 4), 1 + 3 * 2**-8).bfloat16())


@pytest.mark.parametrize("state", [{}, {"a.weight": torch.ones(6, 4)}])
def test_merge_refuses_another_model(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"my\.safetensors .* a .*\[6, 5\]"):
        merge(state, {"a": low_rank(6, 5, 2, 2.0)}, 1.0, "my.safetensors")


@pytest.mark.parametrize(("down", "up"), [((2, 5, 1), (6, 2)), ((2, 5), (6, 3))])
def test_pairs_whose_shapes_do_not_fit_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"down \[2, 5"):
        LowRank(torch.zeros(down), torch.zeros(up), 1.0)


def test_stacking_is_exact_also_with_gaps_other_ranks_and_other_alphas() -> None:
    q, v = low_rank(3, 5, rank=2, alpha=2.0, seed=1), low_rank(4, 5, rank=4, alpha=1.0, seed=2)
    fused = stack([q, None, v], rows=[3, 2, 4])
    assert fused.rank == 6
    expected = torch.cat([q.delta(0.7), torch.zeros(2, 5), v.delta(0.7)])
    assert torch.allclose(fused.delta(0.7), expected, atol=1e-6)


def test_stacking_equal_factors_only_rearranges() -> None:
    parts: list[LowRank | None] = [low_rank(3, 5, rank=2, alpha=6.0, seed=n) for n in range(3)]
    fused = stack(parts, rows=[3, 3, 3])
    assert fused.factor == 3.0
    assert set(fused.up.flatten().tolist()) - {0.0} == {x for p in parts if p for x in p.up.flatten().tolist()}


@pytest.mark.parametrize("alphas", [(0.0, 1.0), (2.0, 0.0), (0.0, 0.0)])
def test_parts_with_alpha_0_change_nothing(alphas: tuple[float, float]) -> None:
    q, v = low_rank(3, 5, rank=2, alpha=alphas[0], seed=1), low_rank(4, 5, rank=4, alpha=alphas[1], seed=2)
    expected = torch.cat([q.delta(0.7), torch.zeros(2, 5), v.delta(0.7)])
    fused = stack([q, None, v], rows=[3, 2, 4])
    torch.testing.assert_close(fused.delta(0.7), expected)
    torch.testing.assert_close(torch.cat([part.delta(0.7) for part in split(fused, [3, 2, 4])]), expected)


def test_split_is_the_inverse() -> None:
    branch = low_rank(9, 5, rank=2, alpha=3.0)
    pieces = split(branch, [2, 3, 4])
    assert torch.allclose(torch.cat([piece.delta(1.0) for piece in pieces]), branch.delta(1.0))


def test_stacking_refuses_other_widths() -> None:
    with pytest.raises(CheckpointError, match="has 3 rows, expected 4"):
        stack([low_rank(3, 5, 2, 2.0), None], rows=[4, 4])
