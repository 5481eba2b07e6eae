"""The command of the tables: it resumes, it keeps what is measured, and a small one runs from end to end."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from magicdistill_core.errors import ConfigError, MagicDistillError
from magicdistill_core.pocket.files import VAE
from tests.train.pocket.tables.fakes import FakeTrainer
from train.pocket.measuring.contenders import Contender
from train.pocket.tables import run as run_module
from train.pocket.tables.records import read_results
from train.pocket.tables.run import Settings, make_tables, show_plan
from train.pocket.tables.trainings import StoppedError

QUICK = ["w2s-4-seed0", "one_step-1-seed0", "euler-1"]


class Recorder:
    """Measures that only note what was measured."""

    def __init__(self) -> None:
        self.measured: list[str] = []

    def of_contender(
        self, contender: Contender, batch: int, advance: Callable[[int], None]
    ) -> tuple[dict[str, Any], Image.Image]:
        self.measured.append(f"{contender.name}: {contender.file.name}, {contender.steps}")
        return {"intact": [0.5]}, Image.new("RGB", (8, 8))

    def of_data(self) -> tuple[dict[str, Any], Image.Image]:
        self.measured.append("floor")
        return {"intact": [1.0]}, Image.new("RGB", (8, 8))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(run_module._Tables, "measures", recorder)
    monkeypatch.setattr(run_module, "write_latents", lambda *arguments, **settings: None)
    return recorder


@pytest.fixture
def settings(tmp_path: Path, portrait_teacher: Path) -> Settings:
    reader = tmp_path / "reader.safetensors"
    reader.write_bytes(b"a reader")
    out = tmp_path / "results.json"
    return Settings(tmp_path / "runs", out, portrait_teacher, VAE, reader, calls=100, portraits=4, clips=2, seeds=2)


def make(settings: Settings, launch: Callable[[list[str], Path], None], only: list[str] = QUICK) -> list[str]:
    said: list[str] = []
    make_tables(settings, only, said.append, launch=launch)
    return said


def test_cells_are_made_and_measured_once(settings: Settings, recorder: Recorder, portrait_teacher: Path) -> None:
    trainer = FakeTrainer(portrait_teacher)
    make(settings, trainer)
    teacher = portrait_teacher.name
    assert recorder.measured == [
        "floor",
        f"euler-1: {teacher}, 1",
        "w2s-4-seed0: w2s-4-seed0.safetensors, 4",
        "one_step-1-seed0: one_step-1-seed0.safetensors, 1",
    ]
    results = read_results(settings.out)
    assert list(results["cells"]) == ["floor", "w2s-4-seed0", "euler-1", "one_step-1-seed0"]
    assert (results["calls"], results["clips"]) == (100, 2)
    assert (settings.runs / "sheets" / "floor.jpg").exists()
    make(settings, trainer)
    assert len(recorder.measured) == 4
    assert len(trainer.commands) == 2


def test_a_run_that_was_killed_between_cells_continues(
    settings: Settings, recorder: Recorder, portrait_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = FakeTrainer(portrait_teacher)
    measure = recorder.of_contender

    def killed(contender: Contender, *rest: Any) -> tuple[dict[str, Any], Image.Image]:
        if contender.name == "w2s-4-seed0":
            raise KeyboardInterrupt
        return measure(contender, *rest)

    monkeypatch.setattr(recorder, "of_contender", killed)
    with pytest.raises(KeyboardInterrupt):
        make(settings, trainer)
    assert list(read_results(settings.out)["cells"]) == ["floor", "euler-1"]
    monkeypatch.setattr(recorder, "of_contender", measure)
    said = make(settings, trainer)
    # The interrupted cell is measured again, and its training is not made again.
    assert len(trainer.commands) == 2
    assert said.count("w2s-4-seed0: measuring") == 1
    assert not [line for line in said if line.startswith(("euler-1", "Other renders"))]
    assert len(read_results(settings.out)["cells"]) == 4


def test_another_reader_measures_again_without_training(
    settings: Settings, recorder: Recorder, portrait_teacher: Path
) -> None:
    trainer = FakeTrainer(portrait_teacher)
    make(settings, trainer)
    settings.reader.write_bytes(b"another reader")
    other = replace(settings)
    make(other, trainer)
    assert len(recorder.measured) == 8
    assert len(trainer.commands) == 2
    with pytest.raises(ConfigError, match="calls: 100, now 200"):
        make(replace(other, calls=200), trainer)


def test_a_failed_training_does_not_stop_the_others(
    settings: Settings, recorder: Recorder, portrait_teacher: Path
) -> None:
    trainer = FakeTrainer(portrait_teacher)

    def fails(arguments: list[str], log: Path) -> None:
        if "w2s-4-seed0" in " ".join(arguments):
            raise MagicDistillError("the disk is full")
        trainer(arguments, log)

    with pytest.raises(MagicDistillError) as failed:
        make(settings, fails, [*QUICK, "dmd-4-seed0"])
    assert "w2s-4-seed0: the disk is full" in str(failed.value)
    assert "one_step-1-seed0: It needs the model of w2s-4-seed0" in str(failed.value)
    assert list(read_results(settings.out)["cells"]) == ["floor", "dmd-4-seed0", "euler-1"]


def test_several_trainings_run_at_once_and_those_with_pairs_wait(
    settings: Settings, recorder: Recorder, portrait_teacher: Path
) -> None:
    trainer = FakeTrainer(portrait_teacher)
    both = replace(settings, processes=2)
    make(both, trainer, ["w2s-4", "one_step-1"])
    order = [line.partition(":")[0] for line in recorder.measured[1:]]
    assert sorted(order) == sorted(f"{row}-seed{seed}" for row in ("w2s-4", "one_step-1") for seed in range(3))
    assert all(order.index(f"w2s-4-seed{seed}") < order.index(f"one_step-1-seed{seed}") for seed in range(3))


def test_a_signal_stops_before_the_next_cell(
    settings: Settings, recorder: Recorder, portrait_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "StopRequest", lambda effect: _Stopped())
    with pytest.raises(StoppedError, match="Stopped by SIGTERM"):
        make(settings, FakeTrainer(portrait_teacher))
    assert recorder.measured == ["floor"]


class _Stopped(SimpleNamespace):
    name = "SIGTERM"

    def __enter__(self) -> "_Stopped":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_the_plan_counts_calls_and_does_not_count_shared_stages_twice(settings: Settings) -> None:
    text = show_plan(settings, ["euler-4", "w2s-4-seed0", "collapse-dmd-slow-000080", "collapse-dmd-slow-000160"])
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in text.splitlines()}
    # Two clips with two seeds each are a quarter of a batch of 16, an eighth of one of 32.
    assert rows["euler-4"][:4] == ["", "", "0", "0"]
    assert rows["w2s-4-seed0"][:3] == ["1", "32", "110"]
    assert [rows[f"collapse-dmd-slow-{stage}"][:3] for stage in ("000080", "000160")] == [
        ["80", "4", "1760"],
        ["160", "4", "1760"],
    ]


def test_a_teacher_of_other_clips_is_refused(settings: Settings, teacher_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"makes clips of 5 frames, 32 x 32.*17 frames, 96 x 96"):
        make(replace(settings, teacher=teacher_file), FakeTrainer(teacher_file))
    assert not settings.runs.exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_table_runs_from_end_to_end(tmp_path: Path, portrait_teacher: Path, reader_file: Path) -> None:
    """Real trainings of a tiny teacher, real measures with the shipped autoencoder and a reader."""
    out = tmp_path / "results.json"
    extra = ("data.micro_batch=2", "model.precision=fp32", "validation.samples=2")
    settings = Settings(
        *(tmp_path / "runs", out, portrait_teacher, VAE, reader_file),
        calls=100,
        portraits=24,
        clips=8,
        seeds=2,
        extra=extra,
    )
    make_tables(settings, QUICK, lambda text: None)
    cells = json.loads(out.read_text())["cells"]
    assert list(cells) == ["floor", "w2s-4-seed0", "euler-1", "one_step-1-seed0"]
    for name, cell in cells.items():
        measures = cell["measures"]
        for measure in ("energy_pixels", "energy_latents", "intact", "identity"):
            assert len(measures[measure]) == 8
            assert torch.tensor(measures[measure]).isfinite().all()
        low, high = measures["two_sample"][1:]
        assert 0 <= low <= high <= 1
        assert (tmp_path / "runs" / "sheets" / f"{name}.jpg").stat().st_size > 10_000
    # Renders of the same beginnings are nearer to the truth than samples of a random network.
    energies = {name: sum(cell["measures"]["energy_pixels"]) for name, cell in cells.items()}
    assert energies["floor"] < min(energies[name] for name in energies if name != "floor")
    assert cells["one_step-1-seed0"]["updates"] >= 1
