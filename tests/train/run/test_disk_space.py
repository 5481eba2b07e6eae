"""A disk that is too small is reported before the first update."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from magicdistill_core.errors import ConfigError
from train.engines.state import MASTER, MOMENTS, Partition
from train.run import checkpoints
from train.run.disk_space import EXTRA_CHECKPOINTS, check_room, state_bytes

GB = 10**9


class State:
    """A saved state of ten elements; another process writes four of them."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def partitions(self) -> list[Partition]:
        return [
            Partition("w", 0, 10, {kind: torch.zeros(6) for kind in self.kinds}),
            Partition("w", 6, 10, {kind: torch.zeros(4) for kind in self.kinds}, written=False),
        ]

    def counter(self) -> int:
        return 0

    def restore(self, counter: int, read: object) -> None:
        raise AssertionError


def test_moments_count_before_they_exist() -> None:
    assert state_bytes({"a": State(MASTER)}) == state_bytes({"a": State(MASTER, *MOMENTS)}) == 6 * 4 * 3
    assert state_bytes({"a": State(MASTER), "average": State("average")}) == 6 * 4 * 4


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A disk whose free space is set."""
    usage = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return usage


@pytest.mark.parametrize("run", ["there", "not/there/yet"])
def test_a_run_that_cannot_save_once_is_refused(run: str, free: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    free.free = 179 * GB
    with pytest.raises(ConfigError, match=r"180\.0 GB.* 179\.0 GB .*run=FOLDER"):
        check_room(tmp_path / run, 180 * GB, keep=2)
    assert not (tmp_path / "not").exists()


def test_a_run_that_cannot_keep_all_checkpoints_is_warned(
    free: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free.free = 899 * GB
    with caplog.at_level(logging.WARNING):
        check_room(tmp_path, 180 * GB, keep=2)
    for fact in ("900.0 GB", "180.0 GB each", "checkpoint.keep=2", "899.0 GB"):
        assert fact in caplog.text
    caplog.clear()
    free.free = (2 + EXTRA_CHECKPOINTS) * 180 * GB
    with caplog.at_level(logging.WARNING):
        check_room(tmp_path, 180 * GB, keep=2)
    assert not caplog.text


def test_existing_checkpoints_count_as_available_space(
    free: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's existing checkpoints count as available space, and the leftovers of killed saves are removed."""

    def export(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(1000))

    settings = {"keep": 2, "since": 0, "healthy": True, "notes": {}}
    for step in (1, 2):
        checkpoints.save(tmp_path, {}, export, update=step, **settings)  # type: ignore[arg-type]
    left = tmp_path / "checkpoints" / ".tmp-step-000003"
    left.mkdir()
    free.free = 3000
    with caplog.at_level(logging.WARNING):
        check_room(tmp_path, 1000, keep=2)
    assert not caplog.text
    assert not left.exists()
    free.free = 2999
    with caplog.at_level(logging.WARNING):
        check_room(tmp_path, 1000, keep=2)
    assert "checkpoint.keep=2" in caplog.text
