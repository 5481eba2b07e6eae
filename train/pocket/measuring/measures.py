"""All measures of samples: energy scores, faces, motion, and how far a classifier tells samples from data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.geometry import unit_to_frames
from magicdistill_core.media.contact_sheet import contact_sheet
from magicdistill_core.metrics.bootstrap import Interval
from magicdistill_core.metrics.energy_score import energy_scores

from ...data.vae import Vae
from ..dataset import to_unit_frames
from .contenders import Contender, sample
from .faces import identity_kept, intact_share, motion_distance
from .held_out import HeldOut, decode
from .intervals import jackknife
from .reader.reading import Reader, Readings
from .two_sample import two_sample_accuracy

# Start images on a contact sheet: the first ones, not picked ones.
SHEET_CLIPS = 16
_SHEET_FRAMES = 9
_DIGITS = 5


@dataclass(frozen=True)
class _Decoded:
    """Decoded samples and what the reader sees in them. N clips, S samples of each.

    Attributes:
        energy: the energy score in pixels of each clip, `[N]`.
        readings: the readings of all samples, `[N * S, T]`; empty without a reader.
        first: the first sample of each clip, uint8 `[N, T, H, W, 3]`.
    """

    energy: Tensor
    readings: list[Readings]
    first: Tensor


class Measures:
    """The measures on one set of held-out portraits. All models are measured with the same noise."""

    def __init__(self, held: HeldOut, vae: Vae, reader: Reader | None) -> None:
        """Decode and read the data.

        Args:
            held: the held-out portraits.
            vae: the autoencoder of the teacher, on the GPU if there is one.
            reader: the reader of pocket portraits. Without one only energy scores are measured.
        """
        self.held = held
        self._vae = vae
        self._reader = reader
        # The data is decoded from latents too, so that blur of the autoencoder counts for no contender.
        self._truths = [decode(vae, clip[None])[0] for clip in held.truths]
        self._truth_readings = [] if reader is None else [reader.read(frames[None]) for frames in self._truths]

    @property
    def seeds(self) -> int:
        """The number S of samples for each start image, the same as the number of futures of the data."""
        return self.held.futures.shape[1]

    def of_contender(
        self, contender: Contender, batch: int, advance: Callable[[int], None]
    ) -> tuple[dict[str, Any], Image.Image]:
        """Sample a model and measure it; arguments as in `measuring.contenders.sample`, result as in `of_samples`."""
        return self.of_samples(sample(contender, self.held.images, range(self.seeds), batch, advance))

    def of_data(self) -> tuple[dict[str, Any], Image.Image]:
        """Measure other renders of the same beginnings: the values of a model that is perfect."""
        return self.of_samples(self.held.futures)

    def of_samples(self, latents: Tensor) -> tuple[dict[str, Any], Image.Image]:
        """Measure samples.

        Args:
            latents: `[N, S, 16, t, h, w]`, S samples for each start image.

        Returns:
            The measures as JSON data, and the contact sheet of the first samples of the first 16 start images. The
            measures are `energy_pixels`, `energy_latents`, `intact` and `identity`, each with one value per clip, and
            `motion_distance` and `two_sample`, each with its value and the lower and the upper end of its interval.
            Without a reader there are only the first two.
        """
        shown = self._decoded(latents)
        measures = {
            "energy_pixels": _rounded(shown.energy),
            "energy_latents": _rounded(energy_scores(latents, self.held.truths)),
        }
        if self._reader is not None:
            measures |= self._of_readings(_joined(shown.readings), _joined(self._truth_readings))
            made, real = to_unit_frames(shown.first), torch.stack(self._truths)
            apart = two_sample_accuracy(made, real, torch.Generator().manual_seed(0), self._reader)
            measures["two_sample"] = _ends(apart)
        return measures, self._sheet(shown.first)

    def _of_readings(self, made: Readings, data: Readings) -> dict[str, list[float]]:
        """Return the measures of faces; sample s of clip n is entry `n * S + s` of `made`."""
        count = len(self.held.truths)
        clip_of = torch.arange(count).repeat_interleave(self.seeds)

        def motion(left_out: Tensor) -> float:
            kept = torch.ones(count, dtype=torch.bool)
            kept[left_out] = False
            return motion_distance(made.clips(kept[clip_of]), data.clips(kept))

        def per_clip(values: Tensor) -> list[float]:
            return _rounded(values.double().unflatten(0, (-1, self.seeds)).mean(1))

        return {
            "intact": per_clip(intact_share(made)),
            "identity": per_clip(identity_kept(made, data.clips(clip_of))),
            "motion_distance": _ends(jackknife(motion, count)),
        }

    def _decoded(self, latents: Tensor) -> _Decoded:
        """Decode and read the samples of one clip after another, because all of them may not fit into memory."""
        energies, readings, first = [], [], []
        for samples, truth in zip(latents, self._truths, strict=True):
            frames = decode(self._vae, samples)
            energies.append(energy_scores(frames[None], truth[None]))
            first.append(unit_to_frames(frames[:1]))
            if self._reader is not None:
                readings.append(self._reader.read(frames))
        return _Decoded(torch.cat(energies), readings, torch.stack(first))

    def _sheet(self, first: Tensor) -> Image.Image:
        rows = list(first[:SHEET_CLIPS])
        return contact_sheet(rows, [f"start image {number + 1}" for number in range(len(rows))], _SHEET_FRAMES)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet as a JPEG file.

    Args:
        sheet: the picture.
        path: the file; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=85)


def _joined(readings: Iterable[Readings]) -> Readings:
    parts = list(readings)
    names = [field.name for field in fields(Readings)]
    return Readings(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _rounded(values: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in values.tolist()]


def _ends(interval: Interval) -> list[float]:
    return [round(value, _DIGITS) for value in (interval.mean, interval.low, interval.high)]
