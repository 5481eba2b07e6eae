"""Small clips and manifests for the tests of curation, with a detector that knows where the face is."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.magicdistill_core.media.clips import write_clip
from train.curation.faces import Face
from train.curation.look import look
from train.curation.manifest import ManifestWriter
from train.data.contents import content_of

HEIGHT, WIDTH = 96, 128
FACE = (0.4, 0.2, 0.3, 0.5)


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A coarse random picture; other seeds give pictures that do not look alike."""
    coarse = np.random.default_rng(seed).integers(40, 230, (height // 8, width // 8, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def moving(seed: int, number: int) -> NDArray[np.uint8]:
    """A picture that wobbles a little from frame to frame."""
    return np.roll(picture(seed), number % 3, axis=1)


def marked(image: NDArray[np.uint8], *, face: bool) -> NDArray[np.uint8]:
    """The picture with or without the mark that `Marked` takes for a face."""
    image = image.copy()
    image[:8, :8] = 255 if face else 0
    return image


class Marked:
    """A detector that finds one face, at `FACE`, in frames whose first corner is white."""

    def find(self, frame: NDArray[np.uint8], /) -> list[Face]:
        if frame[:4, :4].mean() < 128:
            return []
        x, y, width, height = FACE
        points = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)], np.float32)
        return [Face(x, y, width, height, points)]


def write_shots(
    path: Path, shots: Sequence[tuple[int, int]], fps: int = 24, faceless: Callable[[int], bool] = lambda _: False
) -> None:
    """Write a clip of shots, each given by the seed of its pictures and its number of frames."""
    seeds = [seed for seed, frames in shots for _ in range(frames)]
    write_clip(
        path,
        [number / fps for number in range(len(seeds))],
        tick=Fraction(1, 24000),
        picture=lambda number: marked(moving(seeds[number], number), face=not faceless(number)),
        rate=fps,
    )


def scanned(folder: Path, videos: Path) -> Path:
    """The manifest of a folder, as a scan writes it, but without other processes."""
    writer = ManifestWriter(folder, videos, {"faces_sha256": "marked"})
    for path in sorted(videos.iterdir()):
        content = content_of(path)
        identity = {"video": path.name, "bytes": content.bytes, "sha256": content.sha256}
        writer.add([identity | row for row in look(path, Marked())])
    return folder
