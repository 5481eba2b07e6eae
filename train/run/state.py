"""Where a run stands, and everything that takes it up again: checkpoints, the guard's memory, going back."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicdistill_core.errors import CheckpointError, MagicDistillError

from ..config.methods import FAKE
from ..config.training import TrainConfig
from ..distributed import barrier, from_all, is_main, world_size
from ..engines.engine import Engine
from ..engines.state import EngineState, SavedState
from ..methods.draws import Draws
from ..run_folder import FOLDER, LATEST, checkpoint_folder, read_manifest
from ..watch.best import Measure
from ..watch.guard import Guard, Verdict
from . import checkpoints
from .rollback import Rollback, last_rollback

logger = logging.getLogger(__name__)

_FALLBACK_MEASURE = "generator/loss"


class GuardError(MagicDistillError):
    """The guard ended a run; the last good checkpoint is what a resumed run starts from."""


class RunState:
    """The state of a run: what is trained, how many rounds it has had, how often it went back.

    Attributes:
        updates: generator updates made.
        attempt: how often the run went back to an earlier checkpoint.
        saved_states: what checkpoints keep, by name. The engines are in it; more may be added before `resume`.
        changed: settings that a resumed run no longer has as the checkpoint was trained with: before and now, by field.
    """

    def __init__(
        self, config: TrainConfig, engines: Mapping[str, Engine], draws: Draws, export: Callable[[Path, int], None]
    ) -> None:
        """
        Args:
            export: writes the trained weights of an update into a folder; called by every process.
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
        """The configuration as JSON."""
        return self.config.model_dump(mode="json")

    @property
    def global_batch(self) -> int:
        """Samples in one update over all processes."""
        data = self.config.data
        return data.micro_batch * data.accumulation * world_size()

    def resume(self) -> None:
        """Take up the newest checkpoint; a run that has saved none begins anew. A collective call.

        Raises:
            CheckpointError: if it is damaged or another run's or method's, or if an update would now see another number
                of samples.
        """
        root = self.config.run / FOLDER
        if not (root / LATEST).is_file():
            updates = from_all(checkpoints.checkpoint_updates(root))[0]
            if not updates:
                logger.info("%s has saved no checkpoint yet: beginning anew", self.config.run)
                return
            # Killed between the first checkpoint's getting its name and `latest`'s: what has a name is complete.
            if is_main():
                checkpoints.point_to(self.config.run, updates[-1])
            barrier()
        last = last_rollback(self.config.run)
        self._finish_going_back(last)
        self._check_method(read_manifest(checkpoint_folder(self.config.run)).notes)
        manifest = checkpoints.load(self.config.run, self.saved_states)
        notes = manifest.notes
        if notes["global_batch"] != self.global_batch:
            data = self.config.data
            width = data.micro_batch * world_size()
            fits = notes["global_batch"] % width == 0
            advice = "Choose micro-batch, accumulation and processes so that they multiply to that number"
            if fits:
                advice = f"Set data.accumulation={notes['global_batch'] // width}"
            raise CheckpointError(
                f"{self.config.run} was trained with {notes['global_batch']} samples in an update; {world_size()} "
                f"processes x micro-batch {data.micro_batch} x accumulation {data.accumulation} make "
                f"{self.global_batch}. {advice} to continue it as it would have gone on."
            )
        self._take(manifest)
        self._set_attempt(max(self.attempt, last.attempt if last else 0))
        if self.attempt:
            factor = self.config.guard.lr_factor**self.attempt
            logger.info("Times that this run went back: %d; learning rates are multiplied by %g", self.attempt, factor)
        self.changed = _changes(notes["settings"], self._settings)
        for name, (was, value) in self.changed.items():
            logger.info("Changed since update %d: %s from %s to %s", self.updates, name, was, value)

    def _finish_going_back(self, last: Rollback | None) -> None:
        """Do what a process that was killed while the run went back has left undone. A collective call."""
        root = self.config.run / FOLDER
        newest = read_manifest(checkpoint_folder(self.config.run))
        barrier()
        if last is not None and newest.update > last.update and newest.notes["attempt"] < last.attempt:
            if is_main() and last.update in checkpoints.checkpoint_updates(root):
                checkpoints.go_back(self.config.run, last)
            barrier()

    def _check_method(self, notes: Mapping[str, Any]) -> None:
        before = notes["settings"]["method"]["name"]
        if before != self.config.method.name:
            raise CheckpointError(
                f"{self.config.run} was trained with the method {before}, and the configuration now says "
                f"{self.config.method.name}. What optimizers and fake branch have learned is of that method: set "
                f"method.name={before} to continue it, or begin a run of {self.config.method.name} in another folder "
                f"(run=FOLDER)."
            )

    def _take(self, manifest: checkpoints.Manifest) -> None:
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
        """Whether a checkpoint is to be saved now, by updates or by the main process's clock. A collective call."""
        settings = self.config.checkpoint
        late = 0 < settings.minutes * 60 <= time.monotonic() - self._saved_at
        return self.updates % settings.every == 0 or self.updates == self.config.updates or from_all(late)[0]

    def save(self) -> Path | None:
        """Save a checkpoint, unless this very update is saved already. A collective call.

        Raises:
            CheckpointError: if it could not be written.
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
        """Count a round and let the guard see it.

        Returns:
            The verdict, alike on every process, and those of its findings that are new.
        """
        self.updates += 1
        # One process decides: a rounding difference must not send them different ways.
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
        """Whether a run that the guard wants to end may go back instead."""
        settings = self.config.guard
        return settings.action == "rollback" and self.attempt < settings.rollbacks and self.last_good() is not None

    def last_good(self) -> int | None:
        """The update of the newest checkpoint that is known to be good, alike on every process (a collective call).

        The guard had nothing to say about it. If a round has just given what is no number, the checkpoint that it began
        from may have been spoiled already, and an earlier one is better.
        """
        healthy = from_all(checkpoints.healthy_updates(self.config.run))[0]
        proven = [update for update in healthy if update < self.updates - self.guard.broken]
        return max(proven or healthy, default=None)

    def go_back(self) -> None:
        """Continue from the last good checkpoint, with other draws and lower learning rates. A collective call."""
        good = self.last_good()
        assert good is not None
        attempt = self.attempt + 1
        barrier()
        if is_main():
            checkpoints.go_back(self.config.run, Rollback(good, attempt))
        barrier()
        self._take(checkpoints.load(self.config.run, self.saved_states))
        self._set_attempt(attempt)
        self._findings = ()

    def stop(self, findings: tuple[str, ...]) -> GuardError:
        """What to raise when the guard ends the run; `latest` becomes the last good checkpoint. A collective call."""
        good = self.last_good()
        if is_main() and good is not None:
            checkpoints.point_to(self.config.run, good)
        barrier()
        if good is None:
            where = "No good checkpoint was saved before: change the settings and start again in another folder"
        else:
            where = (
                f"The last good checkpoint is of update {good}; --resume continues from there, with settings that you "
                f"change. Export it with: magicdistill export {self.config.run} --update {good}"
            )
        return GuardError(f"The run was stopped at update {self.updates}: {'; '.join(findings)}. {where}.")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values of a configuration, before and now, by the names of the fields in which they differ."""
    old, new = _fields(before), _fields(now)
    return {name: [old.get(name), new.get(name)] for name in old | new if old.get(name) != new.get(name)}


def _fields(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
