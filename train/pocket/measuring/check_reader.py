"""The command `check-reader`: the errors of the reader, and a proof that the two-sample test sees dirt."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.hashes import weights_sha256
from magicdistill_core.metrics.bootstrap import Interval
from magicdistill_core.pocket.pose import pose_at
from magicdistill_core.pocket.render import frame_times, portrait

from ...data.vae import load_vae
from ...distributed import available_device
from ...methods.draws import keyed_generator
from ..dataset import HELD_OUT_SEED
from .blur import blur
from .reader.broken import with_specks
from .reader.calibration import SeenClips, seen_clips
from .reader.check import Detection, Error, detection_rates, face_rates, identity_errors, motion_errors
from .reader.places import places_of
from .reader.reading import Reader, load_reader
from .reader.retouching import Chance
from .two_sample import two_sample_accuracy

SPECKS = (1, 2, 4, 8, 16)
_OPACITY = 0.7

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def check_reader(reader_file: Path, vae_file: Path, people: int, out: Path, progress: Progress) -> str:
    """Measure a reader on held-out people. Write JSON to `out` and return Markdown tables.

    Args:
        reader_file: the reader's file.
        vae_file: the VAE through which it sees frames.
        people: number of held-out people, at least 8.
        out: JSON file to write.
        progress: shows the progress of a piece of work with a title, as a function `(done, total)`.

    Raises:
        ReaderError: if `reader_file` is missing or is no reader.
    """
    reader, vae = load_reader(reader_file), load_vae(vae_file, available_device())
    with progress("Held-out portraits") as advance:
        seen = seen_clips(vae, HELD_OUT_SEED, people, _counter(advance, people))
    clips, others = reader.read(seen.clips), reader.read(seen.others)
    errors = motion_errors(clips, seen) | identity_errors(reader.attributes(clips), seen)
    rates = face_rates(clips, others)
    with progress("Broken faces") as advance:
        detections = detection_rates(reader, vae, people, _counter(advance, people))
    with progress("Two-sample test") as advance:
        accuracies = two_sample_proof(reader, seen, advance)
    record = {
        "people": people,
        "reader_sha256": weights_sha256(reader_file),
        "vae_sha256": weights_sha256(vae_file),
        "errors": {name: asdict(error) for name, error in errors.items()},
        "faces": {name: asdict(rate) for name, rate in rates.items()},
        "detected": {kind: asdict(detection) for kind, detection in detections.items()},
        "two_sample": {name: asdict(accuracy) for name, accuracy in accuracies.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    return tables(errors, rates, detections, accuracies)


def _counter(advance: Callable[[int, int], None], total: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        advance(done, total)

    return count


def two_sample_proof(
    reader: Reader, seen: SeenClips, advance: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Interval]:
    """Return the accuracy of the two-sample test for data, for blurred and sharpened data, and for data with specks.

    The specks are other ones on every frame but the first. All rows are compared with other futures of the same people.

    Args:
        reader: the reader whose features are used.
        seen: held-out people.
        advance: called with (done, total) after each row.
    """
    clips = seen.others
    rows = {
        "data": clips,
        "blurred by 0.5 pixels": blur(clips, 0.5),
        "sharpened by half": (clips + 0.5 * (clips - blur(clips, 1.0))).clamp(0, 1),
    }
    rows |= {f"{count} specks per frame": specked(clips, count) for count in SPECKS}
    found = {}
    for done, (name, made) in enumerate(rows.items()):
        found[name] = two_sample_accuracy(made, seen.clips, torch.Generator().manual_seed(0), reader)
        advance(done + 1, len(rows))
    return found


def specked(clips: Tensor, count: int) -> Tensor:
    """Return the second futures of held-out people with other specks on every frame but the first.

    Args:
        clips: `[N, T, 3, H, W]` in [0, 1]; clip n is future 1 of the held-out person n.
        count: specks per frame.
    """
    made = clips.clone()
    for number, clip in enumerate(made):
        spec = portrait(HELD_OUT_SEED + number, future=1)
        places = places_of(spec, pose_at(spec, frame_times(len(clip))), clip.shape[-1])
        for time in range(1, len(clip)):
            chance = Chance(keyed_generator("specks", number, time))
            clip[time] = with_specks(clip[time], places[time], chance, count, _OPACITY)
    return made


def tables(
    errors: dict[str, Error],
    rates: dict[str, Interval],
    detections: dict[str, Detection],
    accuracies: dict[str, Interval],
) -> str:
    """Return the results as Markdown tables, with 95 % intervals over people.

    Args:
        errors: the error of each quantity.
        rates: the rates of whole faces.
        detections: the detections of each kind of breakage.
        accuracies: the accuracy of the two-sample test for each kind of clips.
    """
    parts = [
        _table(
            ("quantity", "absolute error", "R²"),
            [(name, _shown(error.absolute, 4), _shown(error.explained, 3)) for name, error in errors.items()],
        ),
        _table(("whole faces", "share"), [(name, _shown(rate, 3)) for name, rate in rates.items()]),
        _table(
            ("breakage", "detected", "clips", "frames"),
            [(kind, _shown(found.rate, 3), str(found.clips), str(found.frames)) for kind, found in detections.items()],
        ),
        _table(("clips", "two-sample accuracy"), [(name, _shown(value, 3)) for name, value in accuracies.items()]),
    ]
    return "\n\n".join(parts)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
