"""Log a running training: progress bar, metrics and events. Only the main process logs.

`metrics.jsonl`, TensorBoard and, if configured, W&B hold the metrics of every round that counts; `validation.jsonl` has
those of the validations. A *round* is one generator update with the updates of the other networks before it. The rounds
of the fake warm-up have no generator update; their numbers are 0 and below. After a crash or a rollback, they drop the
rounds that no longer count. A curve has one value per round.
"""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker

from magicdistill_core.files import write_text

from ..console import progress_bar
from ..distributed import is_main
from ..run_folder import ABANDONED_FILE, EVENTS_FILE, METRICS_FILE, VALIDATION_FILE
from .best import Validated
from .weights_and_biases import WandbLog

_TENSORBOARD = "tensorboard"


class RunLog:
    """A context manager that logs scalars per generator update and shows a progress bar."""

    def __init__(
        self,
        run: Path,
        name: str,
        updates: int,
        done: int,
        headline: tuple[str, ...],
        wandb: WandbLog | None = None,
        make_room: Callable[[OSError], bool] = lambda error: False,
    ) -> None:
        """Prepare the progress bar, and open the logs on the main process.

        Args:
            run: the run's folder.
            name: text next to the progress bar.
            updates: number of updates of the complete run.
            done: number of updates already made; in the fake warm-up minus the number of rounds left. Metrics of later
                rounds are dropped.
            headline: names of the metrics shown next to the progress bar.
            wandb: the log at W&B; None to log without it.
            make_room: function that frees space on the disk if it is full, and returns whether to write again.
        """
        self._run = run
        self._headline = headline
        self._make_room = make_room
        self._bar = progress_bar(disable=not is_main())
        self._task = self._bar.add_task(name, total=updates, completed=max(0, done), note="")
        self._wandb = wandb if is_main() else None
        if is_main():
            PartialState()
            dropped = drop_after(run, done)
            drop_after(run, max(0, done), file=VALIDATION_FILE)
            self._open(done)
            if self._wandb is not None and dropped:
                self._wandb.restart(_all_rows(run), done)
            elif self._wandb is not None:
                self._wandb.start()

    def _open(self, done: int) -> None:
        self._lines = open(self._run / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115 - `_close` closes it
        self._open_tensorboard(done + 1)

    def _open_tensorboard(self, first: int) -> None:
        # TensorBoard hides values that earlier writers logged at `purge_step` and after it.
        self._tensorboard = TensorBoardTracker(_TENSORBOARD, str(self._run), purge_step=first)
        self._tensorboard.start()

    def _close(self) -> None:
        self._lines.close()
        self._tensorboard.finish()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if is_main():
            self._close()
        if self._wandb is not None:
            self._wandb.finish()

    def log(self, update: int, metrics: dict[str, float], seconds: float) -> None:
        """Log the metrics of one round.

        Args:
            update: number of the generator update, counted from 1. In the fake warm-up it is 0 for the last round and
                negative for the earlier ones.
            metrics: values by name.
            seconds: duration of the update's round.
        """
        if not is_main():
            return
        row = {**metrics, "seconds": round(seconds, 3)}
        self._lines.write(json.dumps({"step": update, **row}) + "\n")
        try:
            self._lines.flush()
            self._tensorboard.log(row, step=update)
        except OSError as error:
            if not self._make_room(error):
                raise
            # The file still holds what it could not write. A writer of TensorBoard never recovers from an error.
            self._lines.flush()
            with suppress(OSError):
                self._tensorboard.finish()
            self._open_tensorboard(update)
            self._tensorboard.log(row, step=update)
        if self._wandb is not None:
            self._wandb.log(row, update)
        # Without ZeRO in fp32, DeepSpeed does not report gradient norms.
        note = "  ".join(f"{name} {metrics[name]:.4f}" for name in self._headline if name in metrics)
        if update <= 0:
            note = f"fake warm-up, {-update} rounds left  {note}"
        self._bar.update(self._task, completed=max(0, update), note=note)

    def validation(self, update: int, result: Validated) -> None:
        """Log a validation.

        Args:
            update: number of generator updates made.
            result: the energy score, and its difference from the run's start.
        """
        if not is_main():
            return
        row = {"validation/energy": result.energy, "validation/difference": result.difference}
        if math.isfinite(result.standard_error):
            row["validation/standard_error"] = result.standard_error
        line = json.dumps({"step": update, "since": result.since, **row}) + "\n"
        try:
            self._write_validation(update, line)
        except OSError as error:
            if not self._make_room(error):
                raise
            self._write_validation(update, line)
        self._tensorboard.log(row, step=update)
        if self._wandb is not None:
            self._wandb.log(row, update)

    def _write_validation(self, update: int, line: str) -> None:
        # A process that was killed before it stored the result makes this validation again.
        drop_after(self._run, update - 1, file=VALIDATION_FILE)
        path = self._run / VALIDATION_FILE
        write_text(path, (path.read_text(encoding="utf-8") if path.exists() else "") + line)

    def event(self, kind: str, update: int, **facts: object) -> None:
        """Add a line with the event, the time and the update to `events.jsonl`.

        Args:
            kind: name of the event, such as `saved`.
            update: number of generator updates made.
            facts: further entries of the line; JSON data.
        """
        if not is_main():
            return
        try:
            add_event(self._run, kind, update, **facts)
        except OSError as error:
            if not self._make_room(error):
                raise
            add_event(self._run, kind, update, **facts)

    def go_back(self, update: int) -> None:
        """Drop the metrics of the rounds after `update` and reset the progress bar to it."""
        if not is_main():
            return
        self._close()
        drop_after(self._run, update, ABANDONED_FILE)
        drop_after(self._run, max(0, update), file=VALIDATION_FILE)
        self._open(update)
        if self._wandb is not None:
            self._wandb.restart(_all_rows(self._run), update)
        self._bar.update(self._task, completed=max(0, update))


def add_event(run: Path, kind: str, update: int, **facts: object) -> None:
    """Add a line to `events.jsonl`; arguments as for `RunLog.event`.

    Args:
        run: the run's folder.
        kind: name of the event.
        update: number of generator updates made.
        facts: further entries of the line; JSON data.
    """
    line = {"event": kind, "step": update, "time": round(time.time(), 1), **facts}
    with open(run / EVENTS_FILE, "a+b") as file:
        file.write(_line_break(file) + json.dumps(line).encode() + b"\n")


def _all_rows(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of the rounds and of the validations, in the order of their updates."""
    rows = [row for file in (METRICS_FILE, VALIDATION_FILE) for row in read_lines(run / file, "step")]
    return sorted(rows, key=lambda row: row["step"])


def drop_after(run: Path, update: int, into: str | None = None, file: str = METRICS_FILE) -> bool:
    """Remove the rounds after `update` from a file of metrics.

    Also removes an incomplete line, which a killed process may leave.

    Args:
        run: the run's folder.
        update: the last update to keep.
        into: name of a file in the run's folder, to which the removed rounds are appended; None deletes them.
        file: name of the file of metrics in the run's folder.

    Returns:
        Whether rounds were removed.
    """
    path = run / file
    if not path.exists():
        return False
    kept: list[str] = []
    dropped: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            (kept if json.loads(line)["step"] <= update else dropped).append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))
    if into is not None:
        with open(run / into, "a", encoding="utf-8") as abandoned:
            abandoned.writelines(dropped)
    return bool(dropped)


def _line_break(file: BinaryIO) -> bytes:
    """Return a line break if the last line of a file has none, because its process was killed; else nothing."""
    if not file.seek(0, os.SEEK_END):
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def read_lines(path: Path, *needed: str) -> list[dict[str, Any]]:
    """Read a JSON Lines file, and return one dictionary per line.

    Damaged lines, which a killed process or a full disk may leave, are skipped. A missing file is empty.

    Args:
        path: the file.
        needed: entries without which a line is damaged.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(name in row for name in needed):
            rows.append(row)
    return rows
