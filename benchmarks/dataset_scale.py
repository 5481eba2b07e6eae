"""How the cost of a dataset in parts grows with its number of samples: adding a shard, opening, finding a sample.

`python -m benchmarks.dataset_scale [--rows 1000000]` writes datasets of tiny clips into a temporary folder, and prints
a table. The last line is of an index of a million rows without shards, because only the index grows with them.
"""

import argparse
import logging
import random
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import train.data.dataset_writer
from magicdistill_core.families.base import StartImage
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.data.part_writer import PartWriter
from train.data.parts import PART_INDEX

logger = logging.getLogger(__name__)

_SIDE, _FRAMES, _SHARD = 16, 1, 50
_SIZES = (500, 20_000)
_REPEATS = 8


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    train.data.dataset_writer._SHARD_SAMPLES = _SHARD
    index = DatasetIndex(frames=_FRAMES, height=_SIDE, width=_SIDE, fps=24, dtype="float16", vae_sha256="0" * 64)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("   samples  ms a sample, listed   ms a sample, parts   open, ms   find, ms")
    with tempfile.TemporaryDirectory() as folder:
        listed = LatentWriter(Path(folder, "listed"), index)
        parts = PartWriter(Path(folder, "parts"), index, "1of1")
        for size in _SIZES:
            for writer in (listed, parts):
                _add(writer, len(writer), size - _SHARD * _REPEATS)
            costs = [_added(writer, size) for writer in (listed, parts)]
            logger.info("%10d %20.3f %20.3f %s", size, *costs, _opened(Path(folder, "parts")))
        _grow(Path(folder, "parts", "part-1of1", PART_INDEX), rows)
        logger.info("%10d %41s %s", rows, "", _opened(Path(folder, "parts")))


def _add(writer: LatentWriter | PartWriter, first: int, end: int) -> None:
    latent = torch.zeros(16, 1, _SIDE // 8, _SIDE // 8)
    for number in range(first, end):
        writer.append(f"video-{number // 8:07d}.mp4#{number % 8}", latent, StartImage(latent[None]))


def _added(writer: LatentWriter | PartWriter, size: int) -> float:
    """Add the last shards up to a size, and return the median milliseconds for a sample of a shard."""
    times = []
    while len(writer) < size:
        begun = time.perf_counter()
        _add(writer, len(writer), len(writer) + _SHARD)
        times.append((time.perf_counter() - begun) * 1000 / _SHARD)
    return median(times)


def _opened(folder: Path) -> str:
    times, places = [], []
    for _ in range(5):
        begun = time.perf_counter()
        data = LatentDataset(folder)
        times.append((time.perf_counter() - begun) * 1000)
    generator = random.Random(0)
    for _ in range(200):
        number = generator.randrange(len(data))
        begun = time.perf_counter()
        data.index.place(number)
        places.append((time.perf_counter() - begun) * 1000)
    return f"{median(times):>10.2f} {median(places):>10.3f}"


def _grow(path: Path, rows: int) -> None:
    with sqlite3.connect(path) as database:
        (count,) = database.execute("SELECT MAX(number) + 1 FROM samples").fetchone()
        database.executemany(
            "INSERT INTO samples VALUES (?, ?, ?, ?)",
            (
                (number, f"grown-{number // 8:07d}.mp4#{number % 8}", 0, number % _SHARD)
                for number in range(count, rows)
            ),
        )


if __name__ == "__main__":
    main()
