"""The sweep keeps finished cells, and its tables are the statistics of its curves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ring_sweep
from benchmarks.ring_sweep import Plan, collapse, grid, rivals, stacks, sweep
from benchmarks.ring_table import CLOSE, Curve, Results, control, interval, plain, table, written

SMALL = Plan(seeds=2, updates=10, every=2, teacher_updates=30, batch=8)


def every_kind() -> list[ring_sweep.Cell]:
    """One cell of each kind of stack, and what their tables compare them with."""
    names = {
        *("epsilon 1e-08, fake rate 1, dmd", "epsilon 1e-08, fake rate 1, w2s 0.5"),
        *("epsilon 1e-08, fake rate 1, control 0.5", "batch 2, fake rate 1, dmd", "batch 2, fake rate 1, w2s 0.5"),
        *("batch 2, fake rate 1, control 0.5", "guidance 1.5", "dmd", "w2s", "w2s, supervised", "phased"),
    }
    return [cell for cell in [*grid(SMALL), *collapse(), *rivals(SMALL)] if cell.name in names]


def test_a_finished_cell_is_kept_and_the_rest_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that trains one part, then one that finds it: the results are those of one call for all."""
    path, cells = tmp_path / "results.json", every_kind()
    first = [cell for cell in cells if cell.part == "grid"]
    sweep(path, SMALL, first)
    kept = json.loads(path.read_text())["cells"]
    assert kept.keys() == {cell.key for cell in first}
    trained = []
    train = ring_sweep.train
    monkeypatch.setattr(ring_sweep, "train", lambda group, *rest: (trained.extend(group), train(group, *rest))[1])
    results = sweep(path, SMALL, cells)
    assert {cell.key for cell in trained} == {cell.key for cell in cells} - kept.keys()
    assert json.loads(path.read_text()) == results
    assert {key: results["cells"][key] for key in kept} == kept
    trained.clear()
    sweep(path, SMALL, cells)
    assert not trained
    assert sweep(tmp_path / "other.json", SMALL, cells)["cells"] == results["cells"]
    page = table(results)
    for cell in cells:
        assert f"| {cell.name} |" in page
    curves = results["cells"]["rivals: phased"]["curves"]
    assert len(curves) == SMALL.seeds
    assert all(len(curve) == 1 + SMALL.updates // SMALL.every for curve in curves)
    assert curves[0] != curves[1]


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path, cells = tmp_path / "results.json", [cell for cell in every_kind() if cell.part == "grid"][:1]
    sweep(path, SMALL, cells)
    with pytest.raises(ValueError, match="Write to another file"):
        sweep(path, replace(SMALL, updates=12), cells)
    other = replace(cells[0], method=replace(cells[0].method, a_weak=0.1))
    with pytest.raises(ValueError, match="Delete the cell"):
        sweep(path, SMALL, [other])


def test_the_grid_is_complete_and_every_weak_weight_has_a_control() -> None:
    cells = {cell.key: cell for part in (grid(Plan()), collapse(), rivals(Plan())) for cell in part}
    methods = [cell.method for cell in cells.values() if cell.part == "grid" and "control" not in cell.name]
    found = {(method.fake_rate / method.student_rate, method.a_weak, method.epsilon) for method in methods}
    for epsilon in (1e-15, 1e-8):
        assert found >= {(rate, a, epsilon) for rate in (1, 10, 33) for a in (0, 0.25, 0.5, 0.75)}
    for key, cell in cells.items():
        base = control(key)
        if base is not None and cell.part != "rivals":
            of, dmd = cells[base].method, cells[str(plain(key))].method
            assert of.student_rate == pytest.approx((1 - cell.method.a_weak) * cell.method.student_rate)
            assert dmd == replace(cell.method, a_weak=0.0)
            assert replace(of, student_rate=dmd.student_rate) == dmd


def test_stacks_train_only_what_fits_together() -> None:
    cells = [*grid(Plan()), *collapse(), *rivals(Plan())]
    groups = list(stacks(cells, Plan().seeds))
    assert sorted(cell.key for group in groups for cell in group) == sorted(cell.key for cell in cells)
    assert max(map(len, groups)) * Plan().seeds <= ring_sweep.LARGEST_STACK
    assert all(
        len({(cell.method.batch, cell.phased, cell.part == "rivals") for cell in group}) == 1 for group in groups
    )


def test_statistics_of_a_curve() -> None:
    curve = Curve.of([0.3, 0.2, CLOSE - 0.01, 0.01, 0.1, 0.02, 0.02, 0.05], every=10)
    assert (curve.best, curve.best_at, curve.close_at, curve.rises) == (0.01, 30, 20, 2)
    assert curve.end == pytest.approx((0.01 + 0.1 + 0.02 + 0.02 + 0.05) / 5)
    assert curve.oscillation == pytest.approx(0.0377492, abs=1e-6)
    assert Curve.of([0.3, 0.2, 0.2, 0.2, 0.1], every=10).close_at == 40


def test_an_interval_is_students() -> None:
    """With n = 2 the half width is 12.706 times half the distance, with n = 4 3.182 standard errors."""
    assert interval([1.0, 2.0]) == (1.5, pytest.approx(12.706 * 0.5, rel=1e-4))
    assert interval([0.0, 0.0, 2.0, 2.0])[1] == pytest.approx(3.18245 * (4 / 3) ** 0.5 / 2, rel=1e-4)
    assert written([0.1, 0.1001, 0.0999], 2, difference=True) == "**+0.10 ± 0.00**"
    assert written([0.1, -0.1, 0.0], 2, difference=True) == "+0.00 ± 0.25"


def test_differences_are_paired_by_seed() -> None:
    """Two cells with large spread over seeds and a constant difference: the difference has no spread."""
    curves = [[0.5, 0.4 + 0.1 * seed, 0.3 + 0.1 * seed, 0.2 + 0.1 * seed] for seed in range(3)]
    lower = [[value - 0.05 for value in curve] for curve in curves]
    plan = {"seeds": 3, "updates": 3, "every": 1}
    cells = {"grid: x, w2s 0.5": {"curves": lower}, "grid: x, control 0.5": {"curves": curves}}
    found = Results({"plan": plan, "references": {}, "cells": cells})
    assert found.differences("grid: x, w2s 0.5", "grid: x, control 0.5", "best") == pytest.approx([-0.05] * 3)
    assert "**-0.0500 ± 0.0000**" in found.comparison("grid", control)
    assert "control" not in found.comparison("grid", control)
