"""The training loop of the pocket autoencoder: one module, one AdamW, an average of the weights.

`run/trainer.py` trains diffusion networks. An autoencoder has no roles, conditions or noise levels, so this short loop
is sufficient. It uses the trainer's settings, log, learning rate, average and checkpoints.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from magicdistill_core.errors import ConfigError, MagicDistillError

from ..config.precision import FastPrecision
from ..config.sections import EmaConfig, OptimizerConfig, Positive, Section
from ..engines.ema import GeneratorEma
from ..engines.state import EngineState, SavedState
from ..run import checkpoints
from ..run_folder import FOLDER, LATEST
from ..watch.log import RunLog

N = TypeVar("N", bound=nn.Module)

logger = logging.getLogger(__name__)

# A resumed stage may become longer or shorter, and save or measure at other updates.
_CHANGEABLE = ("updates", "checkpoint_every", "validation_every")


class DivergedError(MagicDistillError):
    """Raised when the loss of a stage is not finite."""


class StageConfig(Section):
    """Settings of one stage: length, optimizer, average, checkpoints and measurements."""

    updates: Positive = Field(description="Total number of updates.")
    seed: int = Field(0, ge=0, description="Seed of new weights, data and noise.")
    precision: FastPrecision = Field(
        "auto", validate_default=True, description="Precision of the computation. Weights are fp32."
    )
    optimizer: OptimizerConfig = Field(description="AdamW.")
    average: EmaConfig = Field(EmaConfig(), description="Average of the weights. It is measured and exported.")
    checkpoint_every: Positive = Field(100, description="Updates between checkpoints. The last update is always saved.")
    validation_every: Positive = Field(200, description="Updates between measurements on held-out clips.")


@dataclass(frozen=True)
class PlainEngine:
    """A module and its AdamW, with the attributes of a DeepSpeed engine that `EngineState` uses."""

    module: nn.Module
    optimizer: torch.optim.AdamW

    def zero_optimization_stage(self) -> int:
        """Return 0: the state is not partitioned, because there is one process."""
        return 0


def train_stage(
    folder: Path,
    settings: StageConfig,
    network: N,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    validate: Callable[[N, int], dict[str, float]],
    headline: tuple[str, ...],
) -> N:
    """Train the parameters of a network that require gradients. Resume from the newest checkpoint in `folder`, if any.

    Args:
        folder: the run folder.
        settings: the settings of the stage.
        network: the network to train.
        loss: function `(n) -> (loss, scalars)`: computes the loss of update n, from 0, with the current weights, and
            scalars for the log by name.
        validate: function `(network, n) -> scalars`: measures the averaged weights after update n, from 1, and returns
            scalars for the log by name.
        headline: names of the scalars that the progress bar shows.

    Returns:
        A copy of the network with the averaged weights.

    Raises:
        ConfigError: if the folder holds a run with other settings than its length and its intervals.
        DivergedError: if the loss is not finite. The previous checkpoint is kept.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adam = settings.optimizer
    optimizer = torch.optim.AdamW(trained, lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay)
    engine = PlainEngine(network, optimizer)
    average = GeneratorEma(engine, settings.average)
    states: dict[str, SavedState] = {"network": EngineState(engine), "average": average}
    done = _resumed(folder, states, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLog(folder, folder.name, settings.updates, done, headline) as log:
        for update in range(done, settings.updates):
            began = time.monotonic()
            value, metrics = loss(update)
            if not math.isfinite(value.item()):
                raise DivergedError(
                    f"The loss of update {update + 1} in {folder} is {value.item()}, expected a finite number. Start a "
                    f"new run in another folder with a lower optimizer.lr."
                )
            for group in optimizer.param_groups:
                group["lr"] = adam.rate(update, update / settings.updates)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(trained, adam.clip)
            optimizer.step()
            average.update()
            row = {"loss": value.item(), **metrics, "gradient_norm": norm.item()}
            log.log(update + 1, row, time.monotonic() - began)
            last = update + 1 == settings.updates
            if last or (update + 1) % settings.checkpoint_every == 0:
                _save(folder, states, settings, update + 1)
            if last or (update + 1) % settings.validation_every == 0:
                with average.applied():
                    log.event("validated", update + 1, **validate(network, update + 1))
    with average.applied():
        return copy.deepcopy(network)


def _save(folder: Path, states: Mapping[str, SavedState], settings: StageConfig, update: int) -> None:
    checkpoints.save(
        folder,
        states,
        lambda _: None,
        update=update,
        keep=1,
        since=0,
        healthy=True,
        notes={"settings": settings.model_dump(mode="json")},
    )


def _resumed(folder: Path, states: Mapping[str, SavedState], settings: StageConfig) -> int:
    """Load the newest checkpoint, if any, and return its number of updates."""
    if not (folder / FOLDER / LATEST).is_file():
        return 0
    manifest = checkpoints.load(folder, states)
    before, now = manifest.notes["settings"], settings.model_dump(mode="json")
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if fixed := [name for name in changed if name not in _CHANGEABLE]:
        raise ConfigError(
            f"{folder} holds a run with other settings: {', '.join(fixed)} differ. Use the settings of that run, or "
            f"choose another folder. Only {', '.join(_CHANGEABLE)} may change."
        )
    for name in changed:
        logger.info("%s: setting changed: %s from %s to %s", folder, name, before.get(name), now.get(name))
    logger.info("%s: resumed at update %d", folder, manifest.update)
    return manifest.update
