"""How a run divides its time among its benchmarks."""

import re
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks.store import Store


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time limit in seconds that each benchmark gets. No benchmark is run."""
    seconds: dict[str, float] = {}

    def run(store: Store, name: str, limit: float, pocket: bool) -> str:
        seconds[name] = limit
        return "done"

    monkeypatch.setattr(runner, "_run", run)
    return seconds


def test_the_last_benchmark_gets_all_that_is_left(given: dict[str, float], tmp_path: Path) -> None:
    runner.measure(["iteration", "loading"], tmp_path / "run.json", minutes=10, pocket=True, commit="c")
    assert given["iteration"] == runner.LIMITS["iteration"]
    # All of the run's time is left, because no benchmark was run.
    assert given["loading"] == pytest.approx(10 * 60 - 15, abs=5)
    document = Store(tmp_path / "run.json").read()
    assert document["machine"]["commit"] == "c"
    assert [entry["status"] for entry in document["benchmarks"].values()] == ["done", "done"]


def test_what_does_not_fit_is_recorded_as_not_run(given: dict[str, float], tmp_path: Path) -> None:
    runner.measure(["iteration", "loading"], tmp_path / "run.json", minutes=0.1, pocket=True, commit="c")
    assert given.keys() == {"machine"}
    assert {entry["status"] for entry in Store(tmp_path / "run.json").read()["benchmarks"].values()} == {
        "not run: out of time"
    }
    table = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert "- out of time: the rest of iteration; the rest of loading\n" in table


def test_calls_for_a_gpu_machine_fit_their_nine_minutes() -> None:
    """Every benchmark of a call gets its time, even if those before it use all of theirs."""
    text = Path(runner.__file__).with_name("README.md").read_text(encoding="utf-8")
    calls = re.findall(r"gpu_call\.sh RESULTS --minutes (\d+) --commit COMMIT (.+)", text)
    assert len(calls) == 3
    for minutes, names in calls:
        assert runner._MACHINE_SECONDS + sum(runner.LIMITS[name] for name in names.split()) <= 60 * int(minutes)
    # One machine has one GPU.
    needs_two = {"context_parallel"}
    assert {name for _, names in calls for name in names.split()} == runner.LIMITS.keys() - needs_two
