"""Selection of the best checkpoint, on curves that rise from zero to a peak and then fall."""

import json
from pathlib import Path

import numpy as np
import pytest

from train.config.training import CheckpointConfig
from train.run import checkpoints
from train.run_folder import BEST, FOLDER, checkpoint_updates
from train.watch.best import Measure

WINDOW = 20


def curve(*points: tuple[int, float], seed: int = 0, spread: float = 0.35) -> list[float]:
    """One distance per round: lines between points (round, value), with the noise of the pocket model."""
    rounds, values = zip(*points, strict=True)
    mean = np.interp(range(1, rounds[-1] + 1), rounds, values)
    return list(mean * np.exp(spread * np.random.default_rng(seed).standard_normal(len(mean))))


def best_over_time(
    run: Path, values: list[float], *, rises_first: bool = True, unhealthy: range = range(0), every: int = 50
) -> dict[int, int]:
    """The update in the pointer file `best` after each checkpoint of a run with these distances."""
    measure, best = Measure(WINDOW, rises_first=rises_first), {}
    for step, value in enumerate(values, 1):
        measure.observe(step, value, healthy=step not in unhealthy)
        if step % every:
            continue
        checkpoints.save(
            run,
            {},
            lambda folder: folder.mkdir(parents=True),
            update=step,
            keep=2,
            measure=measure.value,
            since=measure.since,
            healthy=step not in unhealthy,
            notes={},
        )
        best[step] = int((run / FOLDER / BEST).read_text().removeprefix("step-"))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_a_branch_that_has_not_learned_is_not_the_best(seed: int, tmp_path: Path) -> None:
    """Until the peak at 200 the newest checkpoint is the best; later it is the one at the minimum near 400."""
    best = best_over_time(tmp_path, curve((0, 0.01), (200, 1.0), (400, 0.2), (600, 0.4), seed=seed))
    assert [best[step] for step in (50, 100, 150)] == [50, 100, 150]
    assert best[600] in (400, 450)
    assert best[600] in checkpoint_updates(tmp_path / FOLDER)


def test_a_distance_that_only_rises_names_the_newest(tmp_path: Path) -> None:
    best = best_over_time(tmp_path, curve((0, 0.01), (400, 1.0), spread=0.05))
    assert list(best.values()) == list(best)


def test_a_late_rise_is_no_peak(tmp_path: Path) -> None:
    """After a fall to half of the peak, higher values mean that the run gets worse."""
    best = best_over_time(tmp_path, curve((0, 0.01), (100, 1.0), (250, 0.2), (500, 1.5)))
    assert best[500] == 250


def test_a_collapse_is_no_peak(tmp_path: Path) -> None:
    """The guard marks the last rounds as unhealthy before the distance falls to half of its peak."""
    values = curve((0, 0.01), (100, 1.0), (250, 0.7), (400, 5.0), spread=0.05)
    best = best_over_time(tmp_path, values, unhealthy=range(255, 401))
    assert best[400] == 250


def test_without_a_fake_branch_the_lowest_is_the_best_from_the_start(tmp_path: Path) -> None:
    best = best_over_time(tmp_path, curve((0, 0.1), (300, 1.0), spread=0.05), rises_first=False)
    assert set(best.values()) == {50}


def test_a_resumed_measure_continues_equally() -> None:
    values = curve((0, 0.01), (100, 1.0), (250, 0.2), (300, 1.5))
    for cut in (5, 60, 130, 240):
        whole, parts = Measure(WINDOW, rises_first=True), Measure(WINDOW, rises_first=True)
        for step, value in enumerate(values, 1):
            whole.observe(step, value, healthy=True)
            parts.observe(step, value, healthy=True)
            if step == cut:
                notes = json.loads(json.dumps(parts.notes()))
                parts = Measure(WINDOW, rises_first=True)
                parts.restore(notes)
        assert parts.notes() == whole.notes()


def test_a_checkpoint_is_saved_every_hour_by_default() -> None:
    assert CheckpointConfig().minutes == 60
