"""Compare models on held-out pocket portraits: energy scores and, with a reader, faces, motion and a two-sample test.

All models sample the same start images from the same noise. The row `FLOOR` has renders in place of samples: other
futures of the same first frame. They are exact samples, so no model can be better in expectation.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch

from magicdistill_core.errors import ConfigError
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.metrics.bootstrap import Interval
from magicdistill_core.pocket.files import VAE

from ..data.vae import load_vae
from ..distributed import available_device
from .measuring.comparison import Comparison, compare, markdown_table, shown_interval
from .measuring.contenders import Contender, load_contender
from .measuring.held_out import hold_out
from .measuring.measures import Measures
from .measuring.reader.reading import load_reader
from .progress import Progress, adding, no_progress

FLOOR = "other futures (floor)"
# Measures with one value for each clip, and measures that all clips make together; by their names in `Measures`.
OF_CLIPS = {
    "energy_latents": "energy score, latents",
    "energy_pixels": "energy score, pixels",
    "intact": "intact faces, last third",
    "identity": "same person, last third",
}
OF_ALL = {"motion_distance": "distance of the motion from data", "two_sample": "two-sample accuracy"}
_BATCH = 16


def evaluate(
    contenders: Sequence[Contender],
    baselines: Sequence[str],
    clips: int,
    seeds: int,
    out: Path,
    vae_file: Path = VAE,
    reader_file: Path | None = None,
    processes: int = 1,
    progress: Progress = no_progress,
) -> str:
    """Measure models on held-out portraits. Write JSON to `out` and return Markdown tables.

    Args:
        contenders: model files with their steps, with different names.
        baselines: names of the contenders from which differences are computed.
        clips: number of start images; at least 2, with a reader at least 8.
        seeds: number of samples of each start image, at least 2.
        out: JSON file to write. It has the values of every clip, so that other differences can be computed from it.
        vae_file: the video autoencoder of the latents.
        reader_file: the reader of portraits. Without one only energy scores are measured.
        processes: number of processes that render.
        progress: shows the progress of each part of the work.

    Raises:
        ConfigError: if two contenders have the same name.
        CheckpointError: before sampling, if a file is unusable or has no recipe.
    """
    names = [FLOOR, *(contender.name for contender in contenders)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two rows would have the name {', '.join(twice)}. Give each model its own name.")
    for contender in contenders:
        load_contender(contender)
    reader = None if reader_file is None else load_reader(reader_file)
    vae = load_vae(vae_file, available_device())
    with progress("Held-out portraits") as advance:
        numbers, total = count(1), clips * (1 + seeds)
        held = hold_out(vae, clips, seeds, processes, lambda: advance(next(numbers), total))
    measures = Measures(held, vae, reader)
    records = {FLOOR: measures.of_data()[0]}
    for contender in contenders:
        with progress(contender.name) as advance:
            done = adding(advance, clips * seeds)
            records[contender.name] = measures.of_contender(contender, _BATCH, done)[0]
    compared = {
        measure: compare({name: torch.tensor(record[measure]) for name, record in records.items()}, baselines)
        for measure in OF_CLIPS
        if measure in records[FLOOR]
    }
    facts = {
        "machine": f"{platform.machine()}, {available_device().type}, torch {torch.__version__}",
        "clips": clips,
        "seeds": seeds,
        "vae_sha256": weights_sha256(vae_file),
        "models": {c.name: {"sha256": weights_sha256(c.file), "steps": c.steps} for c in contenders},
        "intervals": {measure: {name: asdict(row) for name, row in rows.items()} for measure, rows in compared.items()},
        "values": records,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n")
    tables = [_table_of_clips(OF_CLIPS[measure], rows, baselines) for measure, rows in compared.items()]
    return "\n\n".join(tables if reader is None else [*tables, _table_of_all(records)])


def _table_of_clips(title: str, rows: Mapping[str, Comparison], baselines: Sequence[str]) -> str:
    """Return a table of one measure: means over clips and differences from the baselines, with 95 % intervals."""
    heads = ["", title, *(f"minus {name}" for name in baselines)]
    lines = []
    for name, row in rows.items():
        differences = [shown_interval(row.differences[b]) if b in row.differences else "" for b in baselines]
        lines.append([name, shown_interval(row.value), *differences])
    return markdown_table(heads, lines)


def _table_of_all(records: Mapping[str, dict[str, Any]]) -> str:
    """Return the table of the measures that all clips make together, with 95 % intervals."""
    lines = [
        [name, *(shown_interval(Interval(*record[measure])) for measure in OF_ALL)] for name, record in records.items()
    ]
    return markdown_table(["", *OF_ALL.values()], lines)
