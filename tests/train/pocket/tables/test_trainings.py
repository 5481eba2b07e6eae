"""Trainings of the tables: what is made again, what is not, and what a run that ended early gives."""

from pathlib import Path

import pytest

from magicdistill_core.errors import MagicDistillError
from tests.train.pocket.tables.fakes import FakeTrainer, settings_of
from train.pocket.tables.design import Cell, Design, Training
from train.pocket.tables.trainings import Launcher, Place, StoppedError, facts_of, make_model
from train.run_folder import BEST, EVENTS_FILE, FOLDER


@pytest.fixture
def place(tmp_path: Path, portrait_teacher: Path) -> Place:
    return Place(tmp_path / "runs", tmp_path / "portraits", portrait_teacher, tmp_path / "vae.safetensors", 200)


@pytest.fixture
def staged() -> list[Cell]:
    training = Training("staged", "pocket_w2s", stages=(2, 5))
    return [Cell(f"staged-{stage}", 4, training, stage) for stage in training.stages]


def cell(name: str) -> Cell:
    return Design().cells([name])[-1]


def test_the_best_checkpoint_is_the_model(place: Place, portrait_teacher: Path) -> None:
    trainer, w2s = FakeTrainer(portrait_teacher), cell("w2s-4-seed1")
    assert w2s.training is not None
    assert make_model(place, w2s, trainer)
    settings = settings_of(trainer.commands[0])
    assert settings["seed"] == "1"
    assert settings["model.teacher"] == str(portrait_teacher)
    # 200 calls: the warm-up has 87.5, every round has 22.
    assert settings["updates"] == "5"
    assert place.model(w2s).exists()
    facts = facts_of(place, w2s)
    assert (facts["updates"], facts["update"], facts["seconds"]) == (5, 3, 2.5)
    assert facts["calls"] == 87.5 + 5 * 22
    assert facts["finding"] == (2, "the samples stop moving")
    assert facts["ended_at"] is None


def test_a_model_that_exists_is_not_trained_again_and_a_finished_run_is_only_exported(
    place: Place, portrait_teacher: Path
) -> None:
    trainer, w2s = FakeTrainer(portrait_teacher), cell("w2s-4-seed0")
    make_model(place, w2s, trainer)
    make_model(place, w2s, trainer)
    place.model(w2s).unlink()
    make_model(place, w2s, trainer)
    assert place.model(w2s).exists()
    assert len(trainer.commands) == 1


def test_a_run_without_its_last_validation_is_resumed(place: Place, portrait_teacher: Path) -> None:
    trainer, w2s = FakeTrainer(portrait_teacher), cell("w2s-4-seed0")
    assert w2s.training is not None
    make_model(place, w2s, trainer)
    place.model(w2s).unlink()
    events = place.run(w2s.training) / EVENTS_FILE
    events.write_text("".join(line + "\n" for line in events.read_text().splitlines() if "finished" not in line))
    make_model(place, w2s, trainer)
    assert ["--resume" in command for command in trainer.commands] == [False, True]


def test_the_newest_checkpoint_is_taken_if_none_is_the_best(place: Place, portrait_teacher: Path) -> None:
    w2s = cell("w2s-4-seed0")
    assert w2s.training is not None

    def train(arguments: list[str], log: Path) -> None:
        FakeTrainer(portrait_teacher)(arguments, log)
        (Path(settings_of(arguments)["run"]) / FOLDER / BEST).unlink()

    assert make_model(place, w2s, train)
    assert facts_of(place, w2s)["update"] == 5


def test_stages_continue_one_run(place: Place, portrait_teacher: Path, staged: list[Cell]) -> None:
    trainer = FakeTrainer(portrait_teacher)
    assert all(make_model(place, one, trainer) for one in staged)
    assert [settings_of(command)["updates"] for command in trainer.commands] == ["2", "5"]
    assert len({settings_of(command)["run"] for command in trainer.commands}) == 1
    assert [facts_of(place, one)["seconds"] for one in staged] == [1.0, 2.5]


def test_a_run_that_ended_early_has_its_best_checkpoint_and_no_later_stage(
    place: Place, portrait_teacher: Path, staged: list[Cell]
) -> None:
    trainer = FakeTrainer(portrait_teacher, ends_at=4)
    assert [make_model(place, one, trainer) for one in staged] == [True, False]
    assert facts_of(place, staged[1])["ended_at"] == 4
    # Asked again, the run is not trained again.
    assert not make_model(place, staged[1], trainer)
    assert len(trainer.commands) == 2
    w2s = cell("w2s-4-seed0")
    assert make_model(place, w2s, trainer)
    assert facts_of(place, w2s)["ended_at"] == 4


def test_the_teacher_and_pairs(place: Place, portrait_teacher: Path) -> None:
    assert place.model(cell("euler-4")) == portrait_teacher
    assert make_model(place, cell("euler-4"), FakeTrainer(portrait_teacher))
    assert facts_of(place, cell("euler-4")) == {}
    trainer = FakeTrainer(portrait_teacher)
    one = cell("one_step-1-seed2")
    make_model(place, one, trainer)
    pairs = settings_of(trainer.commands[0])["method.few_step_generator"]
    assert pairs == str(place.model(cell("w2s-4-seed2")))
    # The budget of the four-step generator counts too.
    assert facts_of(place, one)["calls"] == pytest.approx(400, abs=20)


def test_other_failures_are_errors(place: Place) -> None:
    def fails(arguments: list[str], log: Path) -> None:
        raise MagicDistillError("no dataset")

    with pytest.raises(MagicDistillError, match="no dataset"):
        make_model(place, cell("w2s-4-seed0"), fails)


def test_the_end_of_a_failed_command_s_output_is_in_the_error(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "some.log"
    with pytest.raises(MagicDistillError, match=r"magicdistill nonsense failed[\s\S]*No such command"):
        Launcher(lambda: None, 1)(["nonsense"], log)
    assert "No such command" in log.read_text()


def test_nothing_starts_after_a_signal(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"Stopped by SIGTERM.*run the command again"):
        Launcher(lambda: "SIGTERM", 1)(["train"], tmp_path / "some.log")


def test_a_signal_is_passed_on_to_a_command_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "some.log"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntrap 'echo saved; exit 0' TERM\necho ready\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))

    def stopped() -> str | None:
        return "SIGTERM" if log.exists() and "ready" in log.read_text() else None

    with pytest.raises(StoppedError):
        Launcher(stopped, 1)(["train"], log)
    assert log.read_text() == "ready\nsaved\n"
