"""The iteration benchmark counts the network calls of updates correctly and computes correct sums."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import iteration
from benchmarks.cases.iteration import growing, iteration_seconds
from benchmarks.harness import Bench, Row, Timing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """The output of `iteration_rows.py`, measured on a tiny distillation."""
    script = str(Path(__file__).with_name("iteration_rows.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_updates_go_on_after_one_that_ran_out_of_memory(measured: dict[str, Any]) -> None:
    """The longest clip comes before the usual one; it fails when half of the gradients have been reduced."""
    rows = {row["case"]: row for row in measured["short_of_memory"]["rows"]}
    failed = {case: row["error"] for case, row in rows.items() if "error" in row}
    longest = "13 frames at 32x64"
    assert failed == {longest: "out of memory", f"{longest}: backward, attention kept": "out of memory"}
    for frames in (5, 9):
        assert rows[f"{frames} frames at 32x64: iteration, computed from one update of each"]["ratio"] > 0
    assert rows["9 frames at 32x64: backward, attention kept"]["ratio"] > 0


def test_a_restored_optimizer_makes_the_same_update(measured: dict[str, Any]) -> None:
    rows = {row["case"]: row for row in measured["rows"] if "restored" in row["case"]}
    assert list(rows) == [f"5 frames at 32x32: {role} state, restored" for role in ("fake", "generator")]
    assert all(row["relative_difference"] == 0 for row in rows.values())


def test_what_failed_is_free_before_another_is_built(measured: dict[str, Any]) -> None:
    assert measured["short_of_memory"]["alive"] == [0, 0]


def test_without_a_distillation_no_case_is_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(iteration, "build", build)
    rows: list[Row] = []
    bench = Bench(torch.device("cpu"), False, rows.append)
    growing(bench)
    assert rows[0] == {"case": "build", "error": "out of memory"}
    assert len(rows) == 1 + 1 + 3 + 4
    assert {row["error"] for row in rows[1:]} == {"not run: the distillation could not be built"}


def test_iteration_is_computed_from_its_updates() -> None:
    """Five fake updates and one generator update, exit levels 0 to 3: 1 + 1.5 and 2 + 1.5 calls without gradient."""
    fake, generator, forward, backward = (Timing((seconds,)) for seconds in (10.0, 20.0, 2.0, 7.0))
    whole, bare = iteration_seconds(fake, generator, forward, backward, fake_updates=5, steps=4)
    assert whole == pytest.approx(5 * (10 + 3) + 20 + 3)
    assert bare == pytest.approx(5 * (2.5 * 2 + 7) + 3.5 * 2 + 7)


def test_bare_calls_are_those_of_the_updates(measured: dict[str, Any]) -> None:
    assert measured["counted"].keys() == {"fake", "generator", "round"}
    for counted in measured["counted"].values():
        assert counted["made"] == counted["expected"]
    assert measured["counted"]["fake"]["made"] == [3, 1]
    assert measured["counted"]["generator"]["made"] == [4, 1]


def test_bare_calls_train_nothing(measured: dict[str, Any]) -> None:
    assert measured["changed_by_bare_calls"] == []


def test_phases_add_up_to_the_update(measured: dict[str, Any]) -> None:
    phases = {
        "fake update": {"rollout", "forward", "backward", "optimizer"},
        "generator update": {"rollout", "scores", "backward", "optimizer"},
        "rounds": {"rollout", "forward", "scores", "backward", "optimizer", "communication"},
    }
    for part, names in phases.items():
        (row,) = [row for row in measured["rows"] if part in row["case"]]
        known = {"seconds", "bare_seconds"}
        taken = {key.removesuffix("_seconds"): row[key] for key in row if key.endswith("_seconds") and key not in known}
        assert taken.keys() == names
        # The sum of the phases' medians may differ slightly from the median of the complete update.
        assert 0 < sum(taken.values()) < 1.2 * row["seconds_max"]
        assert row["ratio"] > 0
