"""The training of the reader."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from magicdistill_core.writable import check_output_file

from ....config.sections import EmaConfig, OptimizerConfig, Positive
from ....data.vae import load_vae
from ....distributed import available_device
from ....folder_lock import folder_lock
from ....methods.draws import keyed_generator
from ...stage import StageConfig, train_stage
from .batches import Batch, BatchSource, gaze_seen
from .calibration import CALIBRATION_SEED, calibrate, seen_clips
from .examples import write_examples
from .network import ReaderNetwork, initialise
from .quantities import MOTION, spread_of
from .reading import Reader, save_reader

logger = logging.getLogger(__name__)

# People of the renderer whose spread standardises the quantities.
_PEOPLE = 2000
# Batches for the validation of "whole"; no update reaches these numbers.
_VALIDATION_UPDATE = 10**9
_VALIDATION_FRAMES = 256


class ReaderConfig(StageConfig):
    """The settings of the reader's training."""

    updates: Positive = Field(2000, description="Total number of updates.")
    batch: int = Field(48, ge=8, description="Frames per update: half of them whole, half broken.")
    clips: Positive = Field(384, description="Clips that are seen through the VAE, whole and broken.")
    drawn: Positive = Field(2000, description="Clips that are only rendered, which brings more people.")
    calibration: int = Field(48, ge=2, description="People for the scale of identities and the threshold of `whole`.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, warmup=50, final_lr=2e-5), description="AdamW."
    )
    average: EmaConfig = Field(EmaConfig(decay=0.995, start=200), description="Average of the weights.")
    identity_weight: float = Field(0.5, ge=0, description="Weight of the loss of the identity.")
    whole_weight: float = Field(1.0, ge=0, description="Weight of the loss of `whole`.")


def reader_loss(network: ReaderNetwork, batch: Batch, config: ReaderConfig) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its parts.

    The motion and the identity have a squared error of standardised quantities; `whole` has a logistic loss. A label
    that cannot be seen in the frame does not count.

    Args:
        network: the reader's network.
        batch: frames and labels on the device of the network.
        config: the weights.
    """
    motion, identity, whole = (part.float() for part in network(batch.frames))
    motion_error = (motion - (batch.motion - network.motion_mean) / network.motion_std).square()
    identity_error = (identity - (batch.identity - network.identity_mean) / network.identity_std).square().mean(dim=1)
    whole_error = F.binary_cross_entropy_with_logits(whole, batch.whole, reduction="none")
    parts = {
        "motion": _mean(motion_error, batch.motion_seen),
        "identity": _mean(identity_error, batch.identity_seen),
        "whole": _mean(whole_error, batch.whole_known),
    }
    total = parts["motion"] + config.identity_weight * parts["identity"] + config.whole_weight * parts["whole"]
    return total, {name: part.item() for name, part in parts.items()}


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp_min(1)


def train_reader(
    config: ReaderConfig,
    vae_file: Path,
    run_folder: Path,
    out: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Write the examples, train the reader, or resume, calibrate it, and write its file.

    Args:
        config: the settings.
        vae_file: the VAE through which the reader will see frames, see `load_vae`.
        run_folder: the run folder.
        out: the file to write.
        advance: called with (done, total) while the examples are written.

    Returns:
        R^2 of every quantity on people of no training (`r2/yaw` and so on), and the share of visibly broken frames of
        training people that are detected (`detected`).

    Raises:
        FolderInUseError: if another process trains in `run_folder`.
        OutputError: if `run_folder` or `out` cannot be written.
        ConfigError: if the run was started with other settings or another VAE.
        MagicDistillError: if `vae_file` is no VAE.
    """
    check_output_file(out)
    with folder_lock(run_folder, "magicdistill pocket train-reader"):
        device = available_device()
        examples = write_examples(run_folder / "examples", config.seed, config.clips, config.drawn, vae_file, advance)
        source = BatchSource(examples, config.seed)
        network = _new_network(config.seed).to(device)
        seen = seen_clips(load_vae(vae_file, device), CALIBRATION_SEED, config.calibration)
        probe = source.batch(_VALIDATION_UPDATE, _VALIDATION_FRAMES)

        def loss(update: int) -> tuple[Tensor, dict[str, float]]:
            batch = source.batch(update, config.batch).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
                return reader_loss(network, batch, config)

        def validate(trained: ReaderNetwork, update: int) -> dict[str, float]:
            calibrate(trained, seen)
            found = _measured(Reader(trained), seen.clips, seen.motion, probe)
            logger.info("%s, update %d: %s", run_folder.name, update, found)
            return found

        trained = train_stage(run_folder, config, network, loss, validate, ("motion", "identity", "whole"))
        calibrate(trained, seen)
        save_reader(trained, out)
        return _measured(Reader(trained), seen.clips, seen.motion, probe)


def _new_network(seed: int) -> ReaderNetwork:
    network = ReaderNetwork()
    initialise(network, keyed_generator(seed, "reader weights"))
    for name, value in vars(spread_of(_PEOPLE)).items():
        network.get_buffer(name).copy_(value)
    return network


def _measured(reader: Reader, clips: Tensor, motion: Tensor, probe: Batch) -> dict[str, float]:
    """Return the R^2 of every quantity on unseen clips, and the share of visibly broken frames that are detected."""
    error = (reader.read(clips).motion - motion).square()
    counted = gaze_seen(motion)
    spread = (motion - motion.mean(dim=(0, 1))).square()
    explained = 1 - (error * counted).sum(dim=(0, 1)) / (spread * counted).sum(dim=(0, 1))
    broken = (probe.whole == 0) & (probe.whole_known == 1)
    flagged = (reader.read(probe.frames[broken][None]).whole < 0.5).float().mean()
    return {f"r2/{name}": float(value) for name, value in zip(MOTION, explained, strict=True)} | {
        "detected": float(flagged)
    }
