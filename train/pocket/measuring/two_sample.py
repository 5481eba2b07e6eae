"""The two-sample test: how well a fresh classifier tells the late frames of samples from those of data.

A small CNN that is trained on the frames sees how sharp they are and little else, because sharpness is the easiest
difference. This classifier is a linear discriminant of features of the reader and of the texture. Sharpness carries no
information for it: how the features move when a clip is blurred or sharpened counts as noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill_core.metrics.bootstrap import Interval, bootstrap

from .blur import blur
from .late import last_third
from .reader.reading import Reader, load_reader
from .texture import texture

# Standard deviations of blurs in pixels, and strengths of sharpening.
_BLURS, _SHARPENINGS = (0.5, 0.8), (0.4, 0.8)
# How much larger the noise of sharpness is than the deviation that the copies of the clips show.
_SHARPNESS_NOISE = 10.0
# Share of the mean variance that is added to every variance, because few clips do not determine a covariance.
_SHRINKAGE = 0.3
_FOLDS = 4
_REPEATS = 4
_FEWEST_CLIPS = 2 * _FOLDS
_FEWEST_FRAMES = 7
_BATCH = 16
# Clips of which blurred and sharpened copies are made.
_COPIED = 24


def two_sample_accuracy(
    made: Tensor, real: Tensor, generator: torch.Generator, reader: Reader | None = None
) -> Interval:
    """Return the accuracy of a fresh classifier on clips that it was not trained on, with a 95 % interval over clips.

    .50 means that it cannot tell samples from data. The clips are divided into four parts; each is judged by a
    classifier that was trained on the other three. This is repeated with other divisions.

    Args:
        made: decoded samples `[N, T, 3, 96, 96]` in [0, 1], N of at least 8, T of at least
            7.
        real: data as the same VAE shows them, shaped as `made`. Clip n of both should continue the same start image.
        generator: a CPU generator for the divisions and the interval.
        reader: the reader whose features are used. None loads the shipped one.

    Raises:
        ValueError: if the shapes differ, or there are fewer than 8 clips or 7 frames.
        ReaderError: if the shipped reader is missing, or the frames have a wrong shape or wrong values.
    """
    if made.shape != real.shape or made.ndim != 5 or len(made) < _FEWEST_CLIPS or made.shape[1] < _FEWEST_FRAMES:
        raise ValueError(
            f"The two-sample test needs as many samples as clips of data, all of one shape [N, T, 3, H, W], N of at "
            f"least {_FEWEST_CLIPS} and T of at least {_FEWEST_FRAMES}. Found {list(made.shape)} and "
            f"{list(real.shape)}."
        )
    reader = reader or load_reader()
    features = torch.stack([_features_of(clips, reader) for clips in (made, real)])
    changes = _changes_by_sharpness(real, reader)
    correct = torch.zeros(len(made), dtype=torch.float64)
    for _ in range(_REPEATS):
        parts = torch.randperm(len(made), generator=generator) % _FOLDS
        for part in range(_FOLDS):
            judged = parts == part
            scores = _Discriminant.fitted(features[:, ~judged], changes).score(features[:, judged])
            correct[judged] += ((scores[0] > 0).double() + (scores[1] <= 0).double()) / 2
    return bootstrap(correct / _REPEATS, generator)


@dataclass(frozen=True)
class _Discriminant:
    """A linear classifier of features `[..., F]`: positive scores mean "made"."""

    weights: Tensor
    middle: Tensor

    @classmethod
    def fitted(cls, features: Tensor, changes: Tensor) -> "_Discriminant":
        """Fit Fisher's discriminant.

        The covariance of the noise is that within each side, shrunk towards a multiple of the identity, plus that of
        the changes by sharpness.

        Args:
            features: `[2 (made, real), N, F]`.
            changes: changes of the features by blur and sharpening, `[M, F]`.
        """
        scale = features.flatten(0, 1).std(dim=0).clamp_min(1e-9)
        z = features / scale
        means = z.mean(dim=1)
        within = _covariance((z - means[:, None]).flatten(0, 1))
        shrunk = _SHRINKAGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
        noise = within + shrunk + _SHARPNESS_NOISE**2 * _covariance(changes / scale)
        weights = torch.linalg.solve(noise, means[0] - means[1])
        return cls(weights / scale, weights @ means.mean(dim=0))

    def score(self, features: Tensor) -> Tensor:
        return features @ self.weights - self.middle


def _covariance(rows: Tensor) -> Tensor:
    """Return the mean outer product of rows `[N, F]`."""
    return rows.T @ rows / len(rows)


def _features_of(clips: Tensor, reader: Reader) -> Tensor:
    """Return the features of clips `[N, T, 3, H, W]`, `[N, F]` in float64."""
    return torch.cat([_features(_shown(part), reader) for part in clips.split(_BATCH)])


def _changes_by_sharpness(clips: Tensor, reader: Reader) -> Tensor:
    """Return how the features of some of the clips change when they are blurred or sharpened, `[M, F]` in float64."""
    frames = _shown(clips[:_COPIED])
    blurred = [blur(frames, sigma) for sigma in _BLURS]
    sharpened = [(frames + strength * (frames - blur(frames, 1.0))).clamp(0, 1) for strength in _SHARPENINGS]
    before = _features(frames, reader)
    return torch.cat([_features(copy, reader) - before for copy in (*blurred, *sharpened)])


def _shown(clips: Tensor) -> Tensor:
    """Return the first frame and the late frames of clips, `[N, 1 + L, 3, H, W]`."""
    return torch.cat([clips[:, :1], clips[:, last_third(clips.shape[1])]], dim=1)


def _features(frames: Tensor, reader: Reader) -> Tensor:
    """Return the texture of `[N, 1 + L, 3, H, W]`, and what the reader sees late minus what it sees first."""
    seen = reader.features(frames)
    return torch.cat([texture(frames[:, 0], frames[:, 1:]), seen[:, 1:].mean(dim=1) - seen[:, 0]], dim=1).double()
