"""The trainings of the tables: their configurations, and running them as commands of their own.

Each training is an ordinary run that resumes. A training with *stages* pauses at certain updates, at which its model is
exported; a longer run then continues it.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import MagicDistillError

from ...config.reading import load_config
from ...config.training import TrainConfig
from ...run_folder import BEST, EVENTS_FILE, FOLDER, METRICS_FILE, checkpoint_folder, read_manifest
from ...tools.export import export_run
from ...watch.log import read_lines
from .budget import Calls, blocks_of, calls_per_round, rounds_within, warmup_calls
from .design import CHECKPOINTS, PAIR_STEPS, VALIDATION_CLIPS, Cell, Training

logger = logging.getLogger(__name__)

PRESETS = Path(__file__).parents[2] / "presets"
_FINISHED, _ENDED = "finished", "ended by the guard"
_SECONDS_BETWEEN_LOOKS = 0.5
# Updates between two validations of a training with stages.
_STAGED_VALIDATION = 40


class StoppedError(MagicDistillError):
    """Raised when a signal has stopped a training. The training resumes when the command is run again."""


@dataclass(frozen=True)
class Place:
    """Where the trainings are, and what they are made from.

    Attributes:
        runs: the folder of all runs and models.
        dataset: the dataset of encoded portraits, the same for all trainings.
        teacher: the teacher's model file.
        vae: the video autoencoder that encoded the dataset.
        calls: the budget of one training in network calls.
        extra: settings that override those of every training.
    """

    runs: Path
    dataset: Path
    teacher: Path
    vae: Path
    calls: int
    extra: tuple[str, ...] = ()

    def run(self, training: Training) -> Path:
        """Return the folder of a run."""
        return self.runs / "trainings" / training.name

    def model(self, cell: Cell) -> Path:
        """Return the model file of a cell."""
        return self.teacher if cell.training is None else self.model_of(cell.name)

    def model_of(self, cell: str) -> Path:
        """Return the model file that a training makes for the cell of this name."""
        return self.runs / "models" / f"{cell}.safetensors"

    def settings(self, training: Training, updates: int) -> list[str]:
        """Return the settings that override a training's preset, for a run of so many updates.

        Args:
            training: the training.
            updates: generator updates of the run.
        """
        settings = {
            "run": self.run(training),
            "data.dataset": self.dataset,
            "model.teacher": self.teacher,
            "validation.vae": self.vae,
            # More than usual, because it chooses the checkpoint that is measured.
            "validation.samples": VALIDATION_CLIPS,
            "seed": training.seed,
            "updates": updates,
            # Collapses are measured, not avoided. What the guard says is in the record.
            "guard.action": "warn",
            # It makes calls that the budget does not count, and its warnings would look like the guard's.
            "logging.signal_every": 0,
            # A run keeps its best checkpoint and its newest one in any case.
            "checkpoint.keep": 1,
        }
        if training.pairs_from is not None:
            settings["method.few_step_generator"] = self.model_of(training.pairs_from)
        if training.stages:
            settings["checkpoint.every"] = training.stages[-1]
            # Seldom enough for small batches, whose validations cost more than their updates.
            settings["validation.every"] = _STAGED_VALIDATION
        else:
            settings["checkpoint.every"] = settings["validation.every"] = -(-updates // CHECKPOINTS)
        texts = [f"{key}={value}" for key, value in settings.items()]
        changed = {text.partition("=")[0] for text in (*training.settings, *self.extra)}
        kept = [text for text in texts if text.partition("=")[0] not in changed]
        return [*kept, *training.settings, *self.extra]

    def config(self, training: Training) -> TrainConfig:
        """Return the configuration of a complete training."""
        return load_config(self._preset(training), self.settings(training, self.updates(training)))

    def command(self, training: Training, updates: int) -> list[str]:
        """Return the arguments of the command that trains up to an update; a run that exists is resumed."""
        resume = ["--resume"] if (self.run(training) / FOLDER).exists() else []
        return ["train", str(self._preset(training)), *self.settings(training, updates), *resume]

    def updates(self, training: Training) -> int:
        """Return the number of generator updates of a complete training."""
        if training.stages:
            return training.stages[-1]
        warmup, each = self.calls_of(training)
        return rounds_within(self.calls * training.budgets, warmup, each)

    def calls_of(self, training: Training) -> tuple[Calls, Calls]:
        """Return the calls of a training before its first round, and those of each round."""
        config = load_config(self._preset(training), self.settings(training, 1))
        return warmup_calls(config), calls_per_round(config, _blocks(self.teacher), PAIR_STEPS)

    def _preset(self, training: Training) -> Path:
        return PRESETS / f"{training.preset}.yaml"


@cache
def _blocks(teacher: Path) -> tuple[int, int]:
    return blocks_of(load_checkpoint(teacher, "meta").shape)


def ended_at(run: Path) -> int | None:
    """Return the update at which the guard ended a run because its values were not finite; None if it did not.

    Args:
        run: the run's folder.
    """
    ends = [event for event in read_lines(run / EVENTS_FILE, "event", "step") if event["event"] in (_FINISHED, _ENDED)]
    return int(ends[-1]["step"]) if ends and ends[-1]["event"] == _ENDED else None


def _is_finished(run: Path, updates: int) -> bool:
    """Return whether a run has made so many updates, and the validation after the last one."""
    events = read_lines(run / EVENTS_FILE, "event", "step")
    return any(event["event"] == _FINISHED and event["step"] >= updates for event in events)


def _best_update(run: Path) -> int:
    """Return the update of the best checkpoint, as `magicdistill export --best` takes it; else of the newest one.

    The best is the one with the lowest validation energy among those with which the guard was content.
    """
    best = (run / FOLDER / BEST).is_file()
    return read_manifest(checkpoint_folder(run, best=best)).update


def facts_of(place: Place, cell: Cell) -> dict[str, Any]:
    """Return what is known about the training of a cell, as JSON data; nothing for the teacher.

    Args:
        place: the trainings.
        cell: the cell, whose training has made its model.

    Returns:
        The updates of the run up to this cell and the update of the model, the network calls, the seconds of the run,
        the first finding of the guard with its update (None without one), and the update at which the run ended early
        (None if it did not). The calls of a one-step generator contain the budget of the generator that it learns from.
    """
    if cell.training is None:
        return {}
    run = place.run(cell.training)
    end = cell.stage or place.updates(cell.training)
    warmup, each = place.calls_of(cell.training)
    rows = [row for row in read_lines(run / METRICS_FILE, "step") if row["step"] <= end]
    findings = [
        (event["step"], event.get("finding") or "; ".join(event.get("findings", ())))
        for event in read_lines(run / EVENTS_FILE, "event", "step")
        if event["event"] in ("warning", _ENDED) and event["step"] <= end
    ]
    return {
        "updates": end,
        "update": cell.stage or _best_update(run),
        "calls": warmup.forward + end * each.forward + (place.calls if cell.training.pairs_from else 0),
        "seconds": sum(row.get("seconds", 0.0) for row in rows),
        "finding": findings[0] if findings else None,
        "ended_at": ended_at(run),
    }


def make_model(place: Place, cell: Cell, launch: Callable[[list[str], Path], None]) -> bool:
    """Train until the model of a cell can be exported, and export it. What is done already is not done again.

    Args:
        place: the trainings.
        cell: the cell; nothing happens for the teacher's.
        launch: function `(arguments, log)`: runs a command of this project, and writes its output to the file `log`.

    Returns:
        Whether there is a model: False if the run ended before the cell's stage because its values were not finite.

    Raises:
        MagicDistillError: if a command fails for another reason.
    """
    training = cell.training
    out = place.model(cell)
    if training is None or out.exists():
        return True
    run = place.run(training)
    end = cell.stage or place.updates(training)
    if ended_at(run) is None and not _is_finished(run, end):
        try:
            launch(place.command(training, end), place.runs / "logs" / f"{training.name}.log")
        except MagicDistillError:
            if ended_at(run) is None:
                raise
    if ended_at(run) is not None and cell.stage is not None:
        return False
    update = cell.stage or _best_update(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    export_run(run, out, update=update)
    return True


@dataclass(frozen=True)
class Launcher:
    """Runs commands of this project in processes of their own, and passes a signal on to them.

    Attributes:
        stopped: function that returns the name of the signal that asks to stop; None before it arrives.
        threads: number of CPU threads of each command.
    """

    stopped: Callable[[], str | None]
    threads: int

    def __call__(self, arguments: list[str], log: Path) -> None:
        """Run a command to its end.

        Args:
            arguments: the subcommand, its arguments and its options.
            log: the file for its output; it is continued.

        Raises:
            StoppedError: if a signal stopped the command.
            MagicDistillError: if it failed. The message has the end of its output.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", __name__.partition(".")[0], *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if self.stopped() is not None:
            raise StoppedError(_again(self.stopped()))
        with open(log, "ab") as output:
            # Paths in the presets are relative to the root of the repository.
            process = subprocess.Popen(
                command, cwd=PRESETS.parents[1], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            told = False
            while (status := _status(process)) is None:
                if self.stopped() is not None and not told:
                    # The run saves a checkpoint and ends. Ctrl-C has reached it already; it takes both as one request.
                    process.terminate()
                    told = True
        if self.stopped() is not None:
            raise StoppedError(_again(self.stopped()))
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-20:]
            raise MagicDistillError(f"magicdistill {' '.join(arguments)} failed ({log}):\n" + "\n".join(lines))


def _status(process: "subprocess.Popen[bytes]") -> int | None:
    """Return the exit status of a process; None if it still runs after a moment."""
    try:
        return process.wait(_SECONDS_BETWEEN_LOOKS)
    except subprocess.TimeoutExpired:
        return None


def _again(signal: str | None) -> str:
    return f"Stopped by {signal}. Finished cells and checkpoints are kept; run the command again to continue."
