"""The trained reader: its file, and what it reads from clips."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.pocket.files import READER, SIZE
from magicdistill_core.safetensors_file import read_tensors, write_safetensors

from ....distributed import available_device
from .network import ReaderNetwork
from .quantities import IDENTITY, MOTION

_BATCH = 128
_KIND = "magicdistill pocket reader"


class ReaderError(MagicDistillError):
    """Raised when the reader's file is missing or is no reader, or when frames have another shape than it reads."""


@dataclass(frozen=True)
class Readings:
    """What the reader sees in frames. Units are those of `magicdistill_core.pocket.pose`.

    Attributes:
        yaw, pitch, roll: angles of the head in radians, each `[B, T]`.
        gaze_x, gaze_y: position of the irises in head units, each `[B, T]`. Closed eyes have no gaze: it is then a
            guess.
        mouth: opening of the mouth in head units, `[B, T]`.
        blink: closure of the eyelids, 0 is open and 1 is closed, `[B, T]`.
        whole: the probability that the face is whole, `[B, T]`. At the threshold 1/2, 99 % of the frames of the
            calibration (whole faces, seen through the VAE) pass.
        identity: the attributes of the person, `[B, T, D]`, scaled so that an `identity_distance` up to 1 means "the
            same person".
    """

    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    gaze_x: Tensor
    gaze_y: Tensor
    mouth: Tensor
    blink: Tensor
    whole: Tensor
    identity: Tensor

    @property
    def motion(self) -> Tensor:
        """All quantities that change within a clip, `[B, T, 7]`, in the order of `quantities.MOTION`."""
        return torch.stack([getattr(self, name) for name in MOTION], dim=-1)

    def clips(self, chosen: slice | Tensor) -> "Readings":
        """Return the readings of some clips.

        Args:
            chosen: which entries of the first axis.
        """
        return Readings(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def identity_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the root mean square difference of identities, `[...]`; up to 1 means "the same person".

    Args:
        first: `[..., D]` from `Readings.identity`.
        second: `[..., D]`, broadcast to `first`.
    """
    return (first - second).square().mean(dim=-1).sqrt()


class Reader:
    """A trained reader. It runs on the GPU if there is one; what it returns is on the CPU."""

    def __init__(self, network: ReaderNetwork) -> None:
        """Take a network with its buffers set.

        Args:
            network: the network. It is moved to the GPU, if there is one.
        """
        self._device = available_device()
        self._network = network.to(self._device)

    @torch.no_grad()
    def read(self, frames: Tensor) -> Readings:
        """Read clips frame by frame.

        Args:
            frames: `[B, T, 3, 96, 96]` in [0, 1].

        Raises:
            ReaderError: if the frames have another shape, or values that are not in [0, 1].
        """
        flat = _checked(frames)
        network = self._network
        motion, identity, whole = (
            torch.cat(parts).unflatten(0, frames.shape[:2]).cpu()
            for parts in zip(*(network(part.to(self._device)) for part in flat.split(_BATCH)), strict=True)
        )
        motion = motion * network.motion_std.cpu() + network.motion_mean.cpu()
        return Readings(
            **dict(zip(MOTION, motion.unbind(-1), strict=True)),
            whole=torch.sigmoid(whole + network.whole_shift.cpu()),
            identity=identity * network.identity_scale.cpu(),
        )

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """Return the features that the readings are computed from, `[B, T, F]`.

        Args:
            frames: `[B, T, 3, 96, 96]` in [0, 1].

        Raises:
            ReaderError: see `read`.
        """
        parts = [self._network.features(part.to(self._device)).cpu() for part in _checked(frames).split(_BATCH)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def attributes(self, readings: Readings) -> Tensor:
        """Return the identity of readings in the units of the renderer, `[B, T, D]`, in the order of `IDENTITY`.

        Args:
            readings: from `read` of this reader.
        """
        network = self._network
        standardised = readings.identity / network.identity_scale.cpu()
        return standardised * network.identity_std.cpu() + network.identity_mean.cpu()


def _checked(frames: Tensor) -> Tensor:
    """Return the frames as `[B * T, 3, 96, 96]` float32."""
    if frames.ndim != 5 or frames.shape[2:] != (3, SIZE, SIZE) or not frames.is_floating_point():
        raise ReaderError(
            f"The reader reads frames [B, T, 3, {SIZE}, {SIZE}] with values in [0, 1]. Found {list(frames.shape)} of "
            f"{frames.dtype}. Resize the frames, or convert them with `to_unit_frames`."
        )
    low, high = frames.aminmax()
    # Written so that NaN is refused too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ReaderError(
            f"The reader reads frames with values in [0, 1]. Found values from {float(low):.3g} to {float(high):.3g}. "
            f"Scale or clamp the frames."
        )
    return frames.flatten(0, 1).float()


def save_reader(network: ReaderNetwork, path: Path) -> None:
    """Write the file of a trained reader: weights in fp16, scales in fp32.

    Args:
        network: the network with its buffers set.
        path: the file to write.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    weights = {name: value.half() for name, value in network.named_parameters()}
    metadata = {"kind": _KIND, "motion": ",".join(MOTION), "identity": ",".join(IDENTITY)}
    write_safetensors(path, weights | dict(network.named_buffers()), metadata)


def load_reader(path: Path = READER) -> Reader:
    """Load a reader.

    Args:
        path: a file that `magicdistill pocket train-reader` wrote. Default: the shipped one.

    Raises:
        ReaderError: if the file is missing, is no reader, or is a reader of other quantities.
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        raise ReaderError(
            f"There is no reader of pocket portraits at {path}. Train one with `magicdistill pocket train-reader`."
        )
    tensors, metadata = read_tensors(path)
    network = ReaderNetwork()
    expected = {name: value.shape for name, value in network.state_dict().items()}
    quantities = metadata.get("kind"), metadata.get("motion"), metadata.get("identity")
    if quantities != (_KIND, ",".join(MOTION), ",".join(IDENTITY)) or expected != {
        name: value.shape for name, value in tensors.items()
    }:
        raise ReaderError(
            f"{path} is not a reader of this version: its kind is {metadata.get('kind')!r}, expected {_KIND!r} with "
            f"the present quantities and layers. Train one with `magicdistill pocket train-reader`."
        )
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    return Reader(network)
