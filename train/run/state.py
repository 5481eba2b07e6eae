"""The state of a run: its progress, saving and resuming, and rollbacks to earlier checkpoints.

A *round* is one generator update with the updates of the other networks before it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicdistill_core.errors import CheckpointError, MagicDistillError

from ..config.methods import FAKE
from ..config.training import TrainConfig
from ..console import command
from ..distributed import barrier, from_all, is_main, world_size
from ..engines.engine import Engine
from ..engines.state import EngineState, SavedState
from ..methods.draws import Draws
from ..run_folder import FOLDER, LATEST, Manifest, checkpoint_folder, read_manifest
from ..watch.best import Measure
from ..watch.guard import Guard, Verdict
from . import checkpoint_folders as folders
from . import checkpoints
from .rollback import Rollback, last_rollback

logger = logging.getLogger(__name__)

_FALLBACK_MEASURE = "generator/loss"


class GuardError(MagicDistillError):
    """Raised when the guard ends a run. A resumed run starts from the last good checkpoint."""


class RunState:
    """The state of a run.

    Attributes:
        updates: number of generator updates made.
        attempt: how often the run has rolled back to an earlier checkpoint.
        guard: the guard against collapse.
        saved_states: the states in a checkpoint, by name. It contains the engines; add others before `resume`.
        changed: settings of a resumed run that differ from those of the checkpoint: `[before, now]` by field.
    """

    def __init__(
        self, config: TrainConfig, engines: Mapping[str, Engine], draws: Draws, export: Callable[[Path, int], None]
    ) -> None:
        """Start the state of a new run; `resume` then loads that of an earlier one.

        Args:
            config: the training's configuration.
            engines: the engines of the trained roles (generator, fake branch, discriminator), by role.
            draws: the random draws of the run.
            export: function `(folder, update)`: writes the trained weights into a folder; every process calls it.
        """
        self.config = config
        self.updates = 0
        self.attempt = 0
        self.changed: dict[str, list[Any]] = {}
        self.guard = Guard(config.guard)
        self.saved_states: dict[str, SavedState] = {name: EngineState(e.engine) for name, e in engines.items()}
        self._engines = engines
        self._draws = draws
        self._export = export
        self._measure = Measure(config.guard.window, rises_first=FAKE in engines)
        self._saved: int | None = None
        self._saved_at = time.monotonic()
        self._findings: tuple[str, ...] = ()

    @property
    def _settings(self) -> dict[str, Any]:
        """The configuration as JSON data."""
        return self.config.model_dump(mode="json")

    @property
    def global_batch(self) -> int:
        """The number of samples in one update, over all processes."""
        data = self.config.data
        return data.micro_batch * data.accumulation * world_size()

    def resume(self) -> None:
        """Resume from the newest checkpoint; a collective call. A run without a checkpoint starts from the beginning.

        Raises:
            CheckpointError: if the checkpoint is damaged, belongs to another method or network, or was trained with
                another global batch size.
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
        self._check_method(read_manifest(checkpoint_folder(self.config.run)).notes)
        manifest = checkpoints.load(self.config.run, self.saved_states)
        notes = manifest.notes
        if notes["global_batch"] != self.global_batch:
            data = self.config.data
            width = data.micro_batch * world_size()
            divisible = notes["global_batch"] % width == 0
            advice = "Choose a number of processes, data.micro_batch and data.accumulation with that product"
            if divisible:
                advice = f"Set data.accumulation={notes['global_batch'] // width}"
            raise CheckpointError(
                f"{self.config.run} was trained with {notes['global_batch']} samples per update, but {world_size()} "
                f"processes x micro-batch {data.micro_batch} x accumulation {data.accumulation} are "
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

    def _apply(self, manifest: Manifest) -> None:
        """Set the progress, the guard and the measure from a loaded checkpoint."""
        notes = manifest.notes
        self.updates = self._saved = manifest.update
        self.guard.restore(notes["guard"])
        self._measure.restore(notes["measure"])
        self._set_attempt(notes["attempt"])

    def _set_attempt(self, attempt: int) -> None:
        self.attempt = self._draws.attempt = attempt
        for engine in self._engines.values():
            engine.lr_factor = self.config.guard.lr_factor**attempt

    def due(self) -> bool:
        """Return whether a checkpoint is due, by updates or by the main process's clock; a collective call."""
        settings = self.config.checkpoint
        late = 0 < settings.minutes * 60 <= time.monotonic() - self._saved_at
        return self.updates % settings.every == 0 or self.updates == self.config.updates or from_all(late)[0]

    def save(self) -> Path | None:
        """Save a checkpoint; a collective call.

        Returns:
            The checkpoint's folder; None if this update is saved already.

        Raises:
            CheckpointError: if the checkpoint could not be written.
        """
        if self._saved == self.updates:
            return None
        notes: dict[str, Any] = {
            "attempt": self.attempt,
            "global_batch": self.global_batch,
            "processes": world_size(),
            "guard": self.guard.notes(),
            "measure": self._measure.notes(),
            "settings": self._settings,
        }
        folder = checkpoints.save(
            self.config.run,
            self.saved_states,
            lambda folder: self._export(folder, self.updates),
            update=self.updates,
            keep=self.config.checkpoint.keep,
            measure=self._measure.value,
            since=self._measure.since,
            healthy=self.guard.healthy,
            notes=notes,
        )
        self._saved, self._saved_at = self.updates, time.monotonic()
        return folder

    def advance(self, metrics: dict[str, float]) -> tuple[Verdict, tuple[str, ...]]:
        """Count a finished round and check its metrics with the guard; a collective call.

        Args:
            metrics: the round's metrics by name, averaged over the processes.

        Returns:
            The verdict, the same on every process, and those of its findings that the last round did not have.
        """
        self.updates += 1
        # The main process decides: a rounding difference must not lead to different verdicts.
        verdict = from_all(self.guard.observe(metrics))[0]
        measure = metrics.get(self.config.checkpoint.measure, metrics.get(_FALLBACK_MEASURE))
        if measure is not None and not self.guard.broken:
            self._measure.observe(self.updates, measure, healthy=self.guard.healthy)
        if self.config.guard.action == "off" and not self.guard.broken:
            verdict = Verdict()
        kinds = {finding.partition(":")[0] for finding in self._findings}
        new = tuple(finding for finding in verdict.findings if finding.partition(":")[0] not in kinds)
        self._findings = verdict.findings
        return verdict, new

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
        may already have been bad. An earlier checkpoint is then preferred.

        Returns:
            The update; None if there is no good checkpoint.
        """
        healthy = from_all(folders.healthy_updates(self.config.run))[0]
        preferred = [update for update in healthy if update < self.updates - self.guard.broken]
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
