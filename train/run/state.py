"""The state of a run: its progress, saving and resuming, and rollbacks to earlier checkpoints.

A *round* is one generator update with the updates of the other networks before it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any

from magicdistill_core.errors import CheckpointError, MagicDistillError

from ..config.training import TrainConfig
from ..console import command
from ..distributed import barrier, data_size, from_all, is_main, world_size
from ..engines.engine import Engine
from ..engines.state import EngineState, SavedState
from ..methods.draws import Draws
from ..run_folder import FOLDER, LATEST, Manifest, checkpoint_folder, read_manifest
from ..watch.best import EnergyRecord, Validated
from ..watch.guard import Guard, Verdict
from . import checkpoint_folders as folders
from . import checkpoints
from .rollback import Rollback, last_rollback

logger = logging.getLogger(__name__)


class GuardError(MagicDistillError):
    """Raised when the guard ends a run. A resumed run starts from the last good checkpoint."""


class RunState:
    """The state of a run.

    Attributes:
        position: number of generator updates made. In the fake warm-up it is negative: minus the number of rounds that
            are left.
        warmup: number of rounds in the fake warm-up with which the run began.
        attempt: how often the run has rolled back to an earlier checkpoint.
        guard: the guard against collapse.
        energies: the record of validations.
        saved_states: the states in a checkpoint, by name. It contains the engines; add others before `resume`.
        changed: settings of a resumed run that differ from those of the checkpoint: `[before, now]` by field.
    """

    def __init__(
        self,
        config: TrainConfig,
        engines: Mapping[str, Engine],
        draws: Draws,
        export: Callable[[Path, int], None],
        validation_key: str,
    ) -> None:
        """Start the state of a new run; `resume` then loads that of an earlier one.

        Args:
            config: the training's configuration.
            engines: the engines of the trained roles (generator, fake branch, discriminator), by role.
            draws: the random draws of the run.
            export: function `(folder, update)`: writes the trained weights into a folder; every process calls it.
            validation_key: identifies the clips, the noise and the schedule of validation.
        """
        self.config = config
        self.warmup = config.method.warmup_rounds
        self.position = -self.warmup
        self.attempt = 0
        self.changed: dict[str, list[Any]] = {}
        self.guard = Guard(config.guard)
        self.energies = EnergyRecord(validation_key)
        self.saved_states: dict[str, SavedState] = {name: EngineState(e.engine) for name, e in engines.items()}
        self._engines = engines
        self._draws = draws
        self._export = export
        self._saved: int | None = None
        self._saved_at = time.monotonic()
        self._findings: tuple[str, ...] = ()

    @property
    def _settings(self) -> dict[str, Any]:
        """The configuration as JSON data."""
        return self.config.model_dump(mode="json")

    @property
    def updates(self) -> int:
        """The number of generator updates made."""
        return max(0, self.position)

    @property
    def warming(self) -> bool:
        """Whether the run is still in its fake warm-up."""
        return self.position < 0

    @property
    def global_batch(self) -> int:
        """The number of samples in one update, over all processes."""
        data = self.config.data
        return data.micro_batch * data.accumulation * data_size(self.config.context_parallel)

    def resume(self) -> None:
        """Resume from the newest checkpoint; a collective call. A run without a checkpoint starts from the beginning.

        Raises:
            CheckpointError: if the checkpoint is damaged, belongs to another method or network, was trained with
                another global batch size, or lies in a fake warm-up of another length.
        """
        root = self.config.run / FOLDER
        if not (root / LATEST).is_file():
            updates = from_all(list(folders.manifests(self.config.run)))[0]
            if not updates:
                logger.info("%s has no checkpoint yet: starting from the beginning", self.config.run)
                return
            # The run was killed between renaming its first checkpoint and writing `latest`. A folder with a
            # checkpoint's name is complete.
            if is_main():
                folders.point(self.config.run, LATEST, updates[-1])
            barrier()
        last = last_rollback(self.config.run)
        self._finish_rollback(last)
        newest = read_manifest(checkpoint_folder(self.config.run))
        self._check_method(newest.notes)
        self._check_warmup(newest)
        manifest = checkpoints.load(self.config.run, self.saved_states)
        notes = manifest.notes
        if notes["global_batch"] != self.global_batch:
            data = self.config.data
            context = self.config.context_parallel
            width = data.micro_batch * data_size(context)
            divisible = notes["global_batch"] % width == 0
            advice = "Choose a number of processes, data.micro_batch and data.accumulation with that product"
            if divisible:
                advice = f"Set data.accumulation={notes['global_batch'] // width}"
            shared = f" / context_parallel {context}" if context > 1 else ""
            raise CheckpointError(
                f"{self.config.run} was trained with {notes['global_batch']} samples per update, but {world_size()} "
                f"processes{shared} x micro-batch {data.micro_batch} x accumulation {data.accumulation} are "
                f"{self.global_batch} samples. {advice} to continue the run unchanged."
            )
        self._apply(manifest)
        self._set_attempt(max(self.attempt, last.attempt if last else 0))
        if self.attempt:
            factor = self.config.guard.lr_factor**self.attempt
            logger.info("This run has rolled back %d times; learning rates are multiplied by %g", self.attempt, factor)
        self.changed = _changes(notes["settings"], self._settings)
        for name, (before, now) in self.changed.items():
            logger.info("Setting changed since update %d: %s from %s to %s", self.updates, name, before, now)

    def _finish_rollback(self, last: Rollback | None) -> None:
        """Finish the last rollback if its process was killed meanwhile; a collective call."""
        newest = read_manifest(checkpoint_folder(self.config.run))
        barrier()
        if last is not None and newest.update > last.update and newest.notes["attempt"] < last.attempt:
            if is_main() and last.update in folders.manifests(self.config.run):
                folders.go_back(self.config.run, last)
            barrier()

    def _check_method(self, notes: Mapping[str, Any]) -> None:
        before = notes["settings"]["method"]["name"]
        if before != self.config.method.name:
            raise CheckpointError(
                f"{self.config.run} was trained with the method {before}, but the configuration now has "
                f"{self.config.method.name}. The saved optimizers and networks belong to {before}. Set "
                f"method.name={before} to continue the run, or start a run of {self.config.method.name} in another "
                f"folder (run=FOLDER)."
            )

    def _check_warmup(self, manifest: Manifest) -> None:
        begun, now = manifest.notes.get("warmup", 0), self.config.method.warmup_rounds
        if manifest.update < 0 and begun != now:
            raise CheckpointError(
                f"{self.config.run} is in its fake warm-up of {begun} rounds, with {-manifest.update} left, but the "
                f"configuration now has {now}. Set method.fake_warmup={begun} to continue the run, or start a run in "
                f"another folder (run=FOLDER)."
            )

    def _apply(self, manifest: Manifest) -> None:
        """Set the progress, the guard and the record of validations from a loaded checkpoint."""
        notes = manifest.notes
        self.position = self._saved = manifest.update
        # Runs of earlier versions had no warm-up.
        self.warmup = notes.get("warmup", 0)
        self.guard.restore(notes["guard"])
        # Earlier versions selected the best checkpoint by another measure, and have no such notes.
        self.energies.restore(notes.get("energies"))
        if self.energies.since is None and self.config.validation.every:
            logger.info(
                "Update %d: this run has no validation with these clips, seeds and schedule yet. Energy scores are "
                "compared from here on, and only later checkpoints can be the best",
                self.updates,
            )
        self._set_attempt(notes["attempt"])

    def _set_attempt(self, attempt: int) -> None:
        self.attempt = self._draws.attempt = attempt
        for engine in self._engines.values():
            engine.lr_factor = self.config.guard.lr_factor**attempt

    def due(self) -> bool:
        """Return whether a checkpoint is due, by updates or by the main process's clock; a collective call."""
        settings = self.config.checkpoint
        late = 0 < settings.minutes * 60 <= time.monotonic() - self._saved_at
        regular = not self.warming and self.updates % settings.every == 0
        return regular or self.updates == self.config.updates or from_all(late)[0]

    def save(self) -> Path | None:
        """Save a checkpoint; a collective call.

        Returns:
            The checkpoint's folder; None if this position is saved already.

        Raises:
            CheckpointError: if the checkpoint could not be written.
        """
        if self._saved == self.position:
            return None
        notes: dict[str, Any] = {
            "attempt": self.attempt,
            "global_batch": self.global_batch,
            "processes": world_size(),
            "warmup": self.warmup,
            "guard": self.guard.notes(),
            "energies": self.energies.notes(),
            "settings": self._settings,
        }
        folder = checkpoints.save(
            self.config.run,
            self.saved_states,
            lambda folder: self._export(folder, self.updates),
            update=self.position,
            keep=self.config.checkpoint.keep,
            since=self.energies.since or 0,
            healthy=self.guard.healthy,
            notes=notes,
        )
        self._saved, self._saved_at = self.position, time.monotonic()
        return folder

    def store_validation(self, result: Validated) -> None:
        """Store a validation in the checkpoint of this update, if there is one; a collective call.

        Args:
            result: the validation that `energies` has observed.
        """
        if is_main() and self._saved == self.position:
            try:
                checkpoints.record_measure(
                    self.config.run,
                    self.position,
                    result.energy,
                    keep=self.config.checkpoint.keep,
                    since=self.energies.since or 0,
                    healthy=self.guard.healthy,
                    notes={"energies": self.energies.notes(), "guard": self.guard.notes()},
                )
            except OSError as error:
                # The run does not need the result to continue.
                logger.warning("Update %d: the validation could not be stored (%s)", self.updates, error)
        barrier()

    def advance(self, metrics: dict[str, float]) -> tuple[Verdict, tuple[str, ...]]:
        """Count a finished round and check its metrics with the guard; a collective call.

        Args:
            metrics: the round's metrics by name, averaged over the processes.

        Returns:
            The verdict, the same on every process, and those of its findings that the last round did not have.
        """
        observe = self.guard.observe_warmup if self.warming else self.guard.observe
        self.position += 1
        # The main process decides: a rounding difference must not lead to different verdicts.
        verdict = from_all(observe(metrics))[0]
        if self.config.guard.action == "off" and not self.guard.broken:
            verdict = Verdict()
        kinds = {finding.partition(":")[0] for finding in self._findings}
        new = tuple(finding for finding in verdict.findings if finding.partition(":")[0] not in kinds)
        self._findings = verdict.findings
        return verdict, new

    def judge_samples(self, result: Validated) -> Verdict:
        """Let the guard check a validation; a collective call.

        Args:
            result: the validation that `energies` has observed; only the main process's counts.

        Returns:
            The verdict, the same on every process; empty if the guard's action is `off`, or if there is only one clip,
            whose score has no known error.
        """
        result = from_all(result)[0]
        if result.standard_error == inf:
            return Verdict()
        change, error = result.difference / result.start, result.standard_error / result.start
        verdict = self.guard.judge_energy(self.updates, change, error)
        return Verdict() if self.config.guard.action == "off" else verdict

    def may_go_back(self) -> bool:
        """Return whether the run may roll back instead of ending; a collective call.

        It may if the guard's action is `rollback`, some of the allowed rollbacks are left, and there is a good
        checkpoint.
        """
        settings = self.config.guard
        return settings.action == "rollback" and self.attempt < settings.rollbacks and self.last_good() is not None

    def last_good(self) -> int | None:
        """Return the update of the newest good checkpoint, the same on every process; a collective call.

        Good means that the guard found no problem. If the last round produced NaN or infinity, the weights at its start
        may already have been bad. An earlier checkpoint is then preferred. If a validation found worse samples, only
        checkpoints up to the last validation with good ones count.

        Returns:
            The update; None if there is no good checkpoint.
        """
        healthy = from_all(folders.healthy_updates(self.config.run))[0]
        if (trusted := self.guard.trusted_until) is not None:
            healthy = [update for update in healthy if update <= trusted]
        preferred = [update for update in healthy if update < self.position - self.guard.broken]
        return max(preferred or healthy, default=None)

    def go_back(self) -> None:
        """Roll back to the last good checkpoint, with other draws and lower learning rates; a collective call."""
        good = self.last_good()
        assert good is not None
        attempt = self.attempt + 1
        barrier()
        if is_main():
            folders.go_back(self.config.run, Rollback(good, attempt))
        barrier()
        self._apply(checkpoints.load(self.config.run, self.saved_states))
        self._set_attempt(attempt)
        self._findings = ()

    def stop(self, findings: tuple[str, ...]) -> GuardError:
        """Make `latest` name the last good checkpoint, and return the error to raise; a collective call.

        Args:
            findings: the guard's messages, for the error.
        """
        good = self.last_good()
        if is_main() and good is not None:
            folders.point(self.config.run, LATEST, good)
        barrier()
        if good is None:
            advice = "There is no good checkpoint. Change the settings and start a new run in another folder"
        else:
            advice = (
                f"The last good checkpoint is of update {good}. Change the settings and continue from it with "
                f"--resume, or export it with: {command('export', self.config.run, '--update', good)}"
            )
        return GuardError(f"The run was stopped at update {self.updates}: {'; '.join(findings)}. {advice}.")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return `[before, now]` of every configuration field that differs, by dotted name."""
    old, new = _fields(before), _fields(now)
    return {name: [old.get(name), new.get(name)] for name in old | new if old.get(name) != new.get(name)}


def _fields(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration by dotted name."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        fields |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields
