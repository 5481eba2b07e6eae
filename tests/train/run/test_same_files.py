"""The teacher is hashed once per machine, and processes that read other files are noticed."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import train.distributed
import train.run.same_files
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.hashes import weights_sha256
from train.run.same_files import shared_sha256


@dataclass
class Processes:
    """Processes as threads, each on a machine of its own choice, with the collective calls between them."""

    machines: list[str]
    hashed: list[tuple[int, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.local = threading.local()
        self.barrier = threading.Barrier(len(self.machines), timeout=10)
        self.values: dict[int, Any] = {}

    def rank(self) -> int:
        return self.local.rank

    def from_all(self, value: Any) -> list[Any]:
        self.values[self.rank()] = value
        self.barrier.wait()
        values = [self.values[rank] for rank in range(len(self.machines))]
        self.barrier.wait()
        return values

    def sha256(self, path: Path) -> str:
        self.hashed.append((self.rank(), path))
        return weights_sha256(path)

    def run(self, paths: list[Path]) -> list[str | MagicDistillError]:
        """Call `shared_sha256` on every process with its own path; return the results or errors."""
        results: dict[int, str | MagicDistillError] = {}

        def work(rank: int) -> None:
            self.local.rank = rank
            try:
                results[rank] = shared_sha256("model.teacher", paths[rank])
            except MagicDistillError as error:
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(self.machines))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[rank] for rank in range(len(self.machines))]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Processes]:
    def start(machines: list[str]) -> Processes:
        made = Processes(machines)
        monkeypatch.setattr(train.distributed, "from_all", made.from_all)
        monkeypatch.setattr(train.run.same_files, "from_all", made.from_all)
        monkeypatch.setattr(train.run.same_files, "rank", made.rank)
        monkeypatch.setattr(train.run.same_files, "boot_id", lambda: machines[made.rank()])
        monkeypatch.setattr(train.run.same_files, "weights_sha256", made.sha256)
        return made

    return start


def test_one_process_per_machine_reads_the_teacher(tmp_path: Path, processes: Callable) -> None:
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"weights")
    four = processes(["a", "a", "b", "b"])
    assert four.run([teacher] * 4) == [weights_sha256(teacher)] * 4
    assert sorted(rank for rank, _ in four.hashed) == [0, 2]


def test_a_copy_on_the_same_machine_is_read_too(tmp_path: Path, processes: Callable) -> None:
    """Two containers on one machine may have a copy each: it counts which file it is, not how it is called."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teacher.safetensors").write_bytes(b"weights")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "one" / "teacher.safetensors")
    three = processes(["a", "a", "a"])
    paths = [tmp_path / "one" / "teacher.safetensors", tmp_path / "two" / "teacher.safetensors"]
    assert len(set(three.run([*paths, tmp_path / "link.safetensors"]))) == 1
    assert sorted(rank for rank, _ in three.hashed) == [0, 1]


def test_another_teacher_on_another_machine_is_refused_by_all(tmp_path: Path, processes: Callable) -> None:
    """With the same name, size and time."""
    paths = []
    for name, content in (("one", b"weights"), ("two", b"WEIGHTS")):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "teacher.safetensors")
        paths[-1].write_bytes(content)
        os.utime(paths[-1], (1, 1))
    first, second = processes(["a", "b"]).run(paths)
    for error, path in zip((first, second), paths, strict=True):
        assert isinstance(error, MagicDistillError)
        assert all(weights_sha256(each) in str(error) for each in paths)
        assert str(path) in str(error)


def test_a_teacher_that_one_process_cannot_read_ends_all(tmp_path: Path, processes: Callable) -> None:
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"weights")
    errors = processes(["a", "b"]).run([teacher, tmp_path / "none.safetensors"])
    assert all(isinstance(error, MagicDistillError) and "none.safetensors" in str(error) for error in errors)
