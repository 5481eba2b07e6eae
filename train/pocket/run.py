"""What both pocket trainings share: a run folder with an atomic checkpoint, a loss log, a curve, an averaged model.

Randomness is a function of (seed, step), never a state: a resumed run draws exactly what the uninterrupted one would.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from magicdistill_core.errors import MagicDistillError

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "losses.jsonl"
CONFIG_NAME = "config.json"
# What a resumed run may be told anew: its length (the constant middle of the schedule) and its bookkeeping.
_MAY_CHANGE = {"steps", "threads", "save_minutes", "sheet_minutes"}


class RunError(MagicDistillError):
    """A run folder cannot be continued as asked."""


class ScheduleConfig(BaseModel):
    """Length, learning rate and bookkeeping of a run: linear warm-up, constant, then a decay to zero at the end.

    ``steps`` may change when a run is resumed: the constant middle can be made longer or cut short.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1)
    warmup_steps: int = Field(50, ge=0)
    decay_steps: int = Field(500, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    threads: int = Field(2, ge=1)
    bf16: bool = True
    save_minutes: float = Field(4.0, gt=0)
    sheet_minutes: float = Field(8.0, gt=0)

    def rate_at(self, step: int) -> float:
        """The learning rate of update ``step`` (counted from 0)."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / max(1, self.decay_steps)
        return self.learning_rate * warmup * min(1.0, left)


def training_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step of one run; the CPU and a GPU draw different ones."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights, with a shorter memory while the run is young."""
    young = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        # All parameters in one call: on a GPU one launch in place of one a parameter.
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - young)


class TrainingRun:
    """A folder that a training can be stopped at and resumed from at any moment."""

    def __init__(
        self,
        folder: Path,
        config: ScheduleConfig,
        model: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.folder = folder
        self.config = config
        self.model = model
        self.average = average
        self.optimizer = optimizer
        self.step = 0
        self.seconds = 0.0
        self._started = self._saved = self._sheet = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._check_config()
        self._restore()
        self.average.eval().requires_grad_(False)

    def _check_config(self) -> None:
        path = self.folder / CONFIG_NAME
        if path.exists():
            before = json.loads(path.read_text())
            now = json.loads(self.config.model_dump_json())
            changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            if set(changed) - _MAY_CHANGE:
                raise RunError(
                    f"{self.folder} is a run with other settings: {', '.join(changed)} differ. Only "
                    f"{', '.join(sorted(_MAY_CHANGE))} may change when a run is resumed. Use the settings in {path}, "
                    "or another folder."
                )
        path.write_text(self.config.model_dump_json(indent=1))

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT_NAME
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._drop_log_after(self.step)
        logger.info("%s: resumed at step %d", self.folder, self.step)

    def _drop_log_after(self, step: int) -> None:
        """Forget logged losses of steps that were lost with the checkpoint after them."""
        path = self.folder / LOG_NAME
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in kept))

    def save(self) -> None:
        """Replace the checkpoint atomically: a reader sees the old one or the new one, whole."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.elapsed(),
        }
        path = self.folder / CHECKPOINT_NAME
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        self._saved = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training over all sessions of the run."""
        return self.seconds + time.monotonic() - self._started

    def remaining(self) -> Iterator[int]:
        """Yield the steps still to do, with this step's learning rate already set."""
        while self.step < self.config.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.rate_at(self.step)
            yield self.step

    def update(self, loss: Tensor, parts: dict[str, float]) -> None:
        """Back-propagate, clip, step, average, log, and save when it is time.

        Raises RunError if the loss is not finite: the checkpoint before it stays.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise RunError(f"The loss of step {self.step} is {value}. Resume with a lower learning rate.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        update_average(self.average, self.model, self.config.ema, self.step)
        self.step += 1
        row = {"step": self.step, "seconds": round(self.elapsed(), 1), "loss": value, **parts}
        self.log({**row, "grad_norm": norm.item(), "lr": self.optimizer.param_groups[0]["lr"]})
        if time.monotonic() - self._saved > 60 * self.config.save_minutes or self.step == self.config.steps:
            self.save()

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON line to the loss log."""
        with (self.folder / LOG_NAME).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def sheet_due(self) -> bool:
        """True every ``sheet_minutes`` and at the last step."""
        due = time.monotonic() - self._sheet > 60 * self.config.sheet_minutes or self.step == self.config.steps
        if due:
            self._sheet = time.monotonic()
        return due
