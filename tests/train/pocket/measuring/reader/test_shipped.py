"""The shipped reader sees what it should on people of no training, through the shipped VAE."""

import pytest

from magicdistill_core.pocket.files import READER, VAE
from train.data.vae import load_vae
from train.pocket.dataset import HELD_OUT_SEED
from train.pocket.measuring.reader.calibration import SeenClips, seen_clips
from train.pocket.measuring.reader.check import detection_rates, face_rates, motion_errors
from train.pocket.measuring.reader.reading import Reader, load_reader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not READER.is_file(), reason=f"there is no trained reader at {READER}"),
]
# Not the first held-out people, which other measures use.
FIRST, PEOPLE = HELD_OUT_SEED + 1000, 8


@pytest.fixture(scope="module")
def reader() -> Reader:
    return load_reader()


@pytest.fixture(scope="module")
def seen() -> SeenClips:
    return seen_clips(load_vae(VAE), FIRST, PEOPLE)


def test_it_reads_pose_mouth_and_eyelids(reader: Reader, seen: SeenClips) -> None:
    errors = motion_errors(reader.read(seen.clips), seen)
    for name, least in {"yaw": 0.85, "roll": 0.7, "mouth": 0.8, "blink": 0.8, "gaze_x": 0.5}.items():
        explained = errors[name].explained
        assert explained is not None
        assert explained.mean > least, name


def test_it_knows_whole_faces_and_people(reader: Reader, seen: SeenClips) -> None:
    rates = face_rates(reader.read(seen.clips), reader.read(seen.others))
    assert rates["false alarms"].mean < 0.08
    assert rates["same person"].mean > 0.9
    assert rates["other person"].mean < 0.2


def test_it_detects_broken_faces(reader: Reader) -> None:
    rates = detection_rates(reader, load_vae(VAE), PEOPLE)
    for kind in ("missing eye", "smeared eyes", "doubled feature", "melted half"):
        found = rates[kind].rate
        assert found is not None
        assert found.mean > 0.7, kind
