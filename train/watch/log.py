"""Log a running training: progress bar, metrics and events. Only the main process logs.

`metrics.jsonl`, TensorBoard and, if configured, W&B hold the metrics of every round that counts. A *round* is one
generator update with the updates of the other networks before it. After a crash or a rollback, `metrics.jsonl` and
TensorBoard drop the rounds that no longer count. A curve there has one value per round.
"""

import json
import os
import secrets
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker, WandBTracker

from magicdistill_core.errors import ConfigError
from magicdistill_core.files import write_text

from ..config.training import TrainConfig
from ..console import progress_bar
from ..distributed import is_main
from ..run_folder import ABANDONED_FILE, EVENTS_FILE, METRICS_FILE

_TENSORBOARD, _WANDB_ID = "tensorboard", "wandb_id"


def check_trackers(config: TrainConfig) -> None:
    """Check before loading that the configured trackers are installed.

    Args:
        config: the training's configuration.

    Raises:
        ConfigError: if W&B is configured but not installed.
    """
    if config.logging.wandb is not None and find_spec("wandb") is None:
        raise ConfigError(
            f"logging.wandb is {config.logging.wandb!r}, but Weights & Biases is not installed. Install it with "
            "`pip install wandb` and log in with `wandb login`. Or remove logging.wandb; TensorBoard needs neither."
        )


class RunLog:
    """A context manager that logs scalars per generator update and shows a progress bar."""

    def __init__(
        self,
        run: Path,
        name: str,
        updates: int,
        done: int,
        headline: tuple[str, ...],
        wandb: Callable[[Path], WandBTracker] | None = None,
    ) -> None:
        """Prepare the progress bar, and open the logs on the main process.

        Args:
            run: the run's folder.
            name: text next to the progress bar.
            updates: number of updates of the complete run.
            done: number of updates already made; metrics of later updates are dropped.
            headline: names of the metrics shown next to the progress bar.
            wandb: function that opens the run at W&B (see `wandb_tracker`); None to log without W&B.
        """
        self._run = run
        self._headline = headline
        self._bar = progress_bar(disable=not is_main())
        self._task = self._bar.add_task(name, total=updates, completed=done, note="")
        self._wandb: WandBTracker | None = None
        if is_main():
            PartialState()
            drop_after(run, done)
            self._open(done)
            self._wandb = None if wandb is None else wandb(run)

    def _open(self, done: int) -> None:
        self._lines = open(self._run / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115 - `_close` closes it
        # TensorBoard hides values that earlier writers logged at `purge_step` and after it.
        self._tensorboard = TensorBoardTracker(_TENSORBOARD, str(self._run), purge_step=done + 1)
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
        """Log the metrics of one generator update.

        Args:
            update: number of the update, counted from 1.
            metrics: values by name.
            seconds: duration of the update's round.
        """
        if not is_main():
            return
        row = {**metrics, "seconds": round(seconds, 3)}
        self._lines.write(json.dumps({"step": update, **row}) + "\n")
        self._lines.flush()
        self._tensorboard.log(row, step=update)
        if self._wandb is not None:
            # W&B accepts each step number only once, but a rollback repeats updates. W&B therefore draws its curves
            # over the metric `update`.
            self._wandb.log({**row, "update": update})
        # Without ZeRO in fp32, DeepSpeed does not report gradient norms.
        note = "  ".join(f"{name} {metrics[name]:.4f}" for name in self._headline if name in metrics)
        self._bar.update(self._task, completed=update, note=note)

    def event(self, kind: str, update: int, **facts: object) -> None:
        """Add a line with the event, the time and the update to `events.jsonl`.

        Args:
            kind: name of the event, such as `saved`.
            update: number of generator updates made.
            facts: further entries of the line; JSON data.
        """
        if not is_main():
            return
        line = {"event": kind, "step": update, "time": round(time.time(), 1), **facts}
        with open(self._run / EVENTS_FILE, "a+b") as file:
            file.write(_line_break(file) + json.dumps(line).encode() + b"\n")

    def go_back(self, update: int) -> None:
        """Drop the metrics of the rounds after `update` and reset the progress bar to it."""
        if not is_main():
            return
        self._close()
        drop_after(self._run, update, ABANDONED_FILE)
        self._open(update)
        self._bar.update(self._task, completed=update)


def drop_after(run: Path, update: int, into: str | None = None) -> None:
    """Remove the rounds after `update` from `metrics.jsonl`.

    Also removes an incomplete line, which a killed process may leave.

    Args:
        run: the run's folder.
        update: the last update to keep.
        into: name of a file in the run's folder, to which the removed rounds are appended; None deletes them.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return
    kept: list[str] = []
    dropped: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            (kept if json.loads(line)["step"] <= update else dropped).append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))
    if into is not None:
        with open(run / into, "a", encoding="utf-8") as file:
            file.writelines(dropped)


def wandb_tracker(config: TrainConfig) -> Callable[[Path], WandBTracker] | None:
    """Return a function that opens the run at W&B; after a resume it opens the same W&B run.

    Args:
        config: the training's configuration.

    Returns:
        The function, which takes the run's folder; None if no W&B project is configured.
    """
    project = config.logging.wandb
    if project is None:
        return None

    def open_run(run: Path) -> WandBTracker:
        known = run / _WANDB_ID
        if not known.exists():
            write_text(known, secrets.token_hex(4))
        tracker = WandBTracker(
            project,
            id=known.read_text(encoding="utf-8").strip(),
            name=run.name,
            dir=str(run),
            resume="allow",
            config=config.model_dump(mode="json"),
        )
        tracker.start()
        tracker.run.define_metric("*", step_metric="update")
        return tracker

    return open_run


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
