"""The scan of real clips, against a table that was made by looking at their frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from train.curation.manifest import Manifest, Row
from train.curation.rules import DEFAULT, apply_rules, read_rules

pytestmark = pytest.mark.slow  # about 90 s of one core for 22 clips


class Seen(NamedTuple):
    """What a person sees: where shots begin, the face's middle, the sound, and why the rules must drop the shots."""

    face: tuple[float, float]
    sound: str = "none"
    starts: tuple[int, ...] = (0,)
    dropped: tuple[str, ...] = ()
    hands: bool = False


BESIDE = ("faces", "joined")
SEEN = {
    "carphone_pristine": Seen((0.43, 0.45), dropped=("face_pixels",)),
    "liveportrait_d0": Seen((0.5, 0.57)),
    "liveportrait_d13": Seen((0.52, 0.47)),
    "liveportrait_d18": Seen((0.5, 0.58), "silent"),
    "liveportrait_d3": Seen((0.53, 0.62), "silent"),
    "liveportrait_s18": Seen((0.57, 0.36), "loud"),
    "liveportrait_s20": Seen((0.42, 0.3), "silent", hands=True),
    "liveportrait_s29": Seen((0.53, 0.33), "silent", hands=True),
    "talk_01": Seen((0.5, 0.1), "loud", dropped=("face_pixels", "face_height", "face_motion"), hands=True),
    "talk_02": Seen((0.5, 0.5), "silent"),
    "talk_03": Seen((0.47, 0.6), "loud"),
    # The whole picture jumps after the first frame, and then stands still for four.
    "talk_04": Seen((0.5, 0.47), "loud", starts=(0, 1)),
    "talk_05": Seen((0.78, 0.55), "loud", dropped=BESIDE),
    "talk_06": Seen((0.78, 0.43), "loud", dropped=BESIDE),
    "talk_07": Seen((0.77, 0.5), "loud", dropped=BESIDE),
    "talk_08": Seen((0.54, 0.38), "loud", hands=True),
    "talk_09": Seen((0.48, 0.33)),
    "talk_10": Seen((0.5, 0.6)),
    "talk_11": Seen((0.57, 0.36), "loud"),
    "talk_12": Seen((0.55, 0.55), "loud"),
    "talk_13": Seen((0.48, 0.23), "loud", hands=True),
    # Two takes of the same man on the same chair.
    "talk_14": Seen((0.53, 0.34), "loud", starts=(0, 271), hands=True),
}


@pytest.fixture(scope="module")
def rows(shared_data: Path, landmarker: Path) -> Iterator[dict[str, list[Row]]]:
    """The rows of every clip."""
    from train.curation.faces import MediaPipeFaces
    from train.curation.look import look

    detector = MediaPipeFaces(landmarker)
    clips = [path for folder in ("clips", "talk") for path in sorted((shared_data / folder).glob("*.mp4"))]
    yield {path.stem: [row | {"video": path.name} for row in look(path, detector)] for path in clips}
    detector.close()


def test_the_table_has_every_clip(rows: dict[str, list[Row]]) -> None:
    assert rows.keys() == SEEN.keys()


@pytest.mark.parametrize("clip", SEEN)
def test_a_clip_is_what_a_person_sees(rows: dict[str, list[Row]], clip: str) -> None:
    seen, found = SEEN[clip], rows[clip]
    assert not any(row.get("error") for row in found)
    assert tuple(row["first"] for row in found) == seen.starts
    longest = max(found, key=lambda row: row["seconds"])
    assert longest["faces"] == (2 if seen.dropped == BESIDE else 1)
    assert longest["face_share"] == 1
    assert (longest["face_x"], longest["face_y"]) == pytest.approx(seen.face, abs=0.07)
    levels = {"none": None, "silent": longest["loudness"] == -120, "loud": (longest["loudness"] or -120) > -40}
    assert longest["sound"] == (seen.sound != "none")
    assert levels[seen.sound] in (None, True)
    assert longest["text"] < 0.005
    assert (longest["joined"] > 0.7) == ("joined" in seen.dropped)


def test_the_rules_keep_what_a_person_keeps(rows: dict[str, list[Row]]) -> None:
    every = [dict.fromkeys(("error", *read_rules())) | row for found in rows.values() for row in found]
    review = apply_rules(Manifest(Path("m"), Path("v"), every), read_rules(DEFAULT))
    reasons: dict[str, tuple[str, ...]] = {}
    for verdict in review.verdicts:
        if verdict.row["seconds"] > 1:
            reasons[Path(verdict.row["video"]).stem] = verdict.reasons
        else:
            assert verdict.reasons[0] == "seconds"
    for clip, seen in SEEN.items():
        assert set(reasons[clip]) == set(seen.dropped), clip
