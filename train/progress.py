"""What a run tells while it goes: a progress bar, TensorBoard, and `metrics.jsonl`; the main process speaks alone."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .distributed import is_main


class RunLog:
    """A context that logs scalars per generator update; the metrics of `headline` stand beside the bar."""

    def __init__(self, run: Path, total: int, done: int, method: str, headline: tuple[str, ...]) -> None:
        self._headline = headline
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            disable=not is_main(),
        )
        self._task = self._bar.add_task(method, total=total, completed=done, note="")
        self._tracker: TensorBoardTracker | None = None
        if is_main():
            PartialState()
            self._tracker = TensorBoardTracker("tensorboard", str(run))
            self._tracker.start()
            self._lines = open(run / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._tracker is not None:
            self._tracker.finish()
            self._lines.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of generator update `step` (from 1)."""
        if self._tracker is None:
            return
        self._tracker.log(metrics, step=step)
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        note = "  ".join(f"{name} {metrics[name]:.4f}" for name in self._headline)
        self._bar.update(self._task, completed=step, note=note)
