"""The iteration benchmark: it counts the calls that updates make, and its sums are right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases.iteration import iteration_seconds
from benchmarks.harness import Timing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What a tiny distillation gave."""
    script = str(Path(__file__).with_name("iteration_rows.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_iteration_is_computed_from_its_updates() -> None:
    """Five fake updates and one of the generator at exits 0 to 3: 1 + 1.5 and 2 + 1.5 calls without gradient."""
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
        # Medians of the phases, so that their sum may differ a little from the median of the whole.
        assert 0 < sum(taken.values()) < 1.2 * row["seconds_max"]
        assert row["ratio"] > 0
