"""Rules, verdicts and copies."""

from pathlib import Path

import pytest

from train.curation.copies import copy_bits
from train.curation.manifest import Manifest
from train.curation.packages import CurationError
from train.curation.rules import DEFAULT, MEASURES, Limits, apply_rules, read_rules


def shot(video: str, hashes: list[int], width: int = 100, **measures: object) -> dict:
    row = dict.fromkeys(MEASURES) | {"video": video, "shot": 0, "error": None, "seconds": 5.0, "height": 100}
    return row | {"width": width, "hashes": hashes} | measures


def manifest(*rows: dict) -> Manifest:
    return Manifest(Path("scan"), Path("videos"), list(rows))


HASHES = [0x1234_5678_9ABC_DEF0 + n for n in range(5)]


def test_each_rule_drops_what_is_outside_its_limits() -> None:
    rows = [shot(str(n), [], seconds=float(n), faces=n % 3) for n in range(6)]
    review = apply_rules(manifest(*rows), {"seconds": Limits(least=2), "faces": Limits(least=1, most=1)})
    assert [row["video"] for row in review.kept] == ["4"]
    assert [row["video"] for row in review.dropped_by("seconds")] == ["0", "1"]
    assert review.only_by("seconds") == 1
    assert review.only_by("faces") == 3


def test_an_unknown_measure_passes_and_damage_never_does() -> None:
    rows = [shot("a", [], face_pixels=None), shot("b", []) | {"error": "b is damaged"}]
    review = apply_rules(manifest(*rows), {"face_pixels": Limits(least=100)})
    assert [verdict.reasons for verdict in review.verdicts] == [(), ("damaged",)]


def test_of_copies_the_largest_is_kept_unless_another_rule_drops_it() -> None:
    rows = [
        shot("small", HASHES, 50),
        shot("large", [h ^ 1 for h in HASHES], 200),
        shot("other", [~h % 2**64 for h in HASHES]),
    ]
    limits = {"copy_bits": Limits(least=5), "text": Limits(most=0.1)}
    assert [row["video"] for row in apply_rules(manifest(*rows), limits).kept] == ["large", "other"]
    rows[1] |= {"text": 0.5}
    assert [row["video"] for row in apply_rules(manifest(*rows), limits).kept] == ["small", "other"]


def test_the_mean_over_a_shots_hashes_counts() -> None:
    far = [HASHES[0], *(h ^ 0xFFFF for h in HASHES[1:])]
    assert copy_bits([shot("a", HASHES), shot("b", far)]) == [None, 16 * 4 / 5]
    assert copy_bits([shot("a", HASHES), shot("a", HASHES)]) == [None, None]  # two shots of one video
    assert copy_bits([]) == []


def test_the_rules_of_this_project_are_valid() -> None:
    assert read_rules(DEFAULT).keys() <= MEASURES.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seconds: {lest: 1}", "seconds"),
        ("sharpnes: {least: 1}", "sharpnes"),
        ("seconds: {least: two}", "seconds"),
        ("seconds: {least: 3, most: 2}", "larger"),
        ("- seconds", "expected measures"),
        ("seconds: {", "YAML"),
        ("", "expected measures"),
    ],
)
def test_wrong_rules_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(CurationError, match=expected):
        read_rules(tmp_path / "rules.yaml")
