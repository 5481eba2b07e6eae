from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from train.eval.folders import Item
from train.eval.measures import all_measures
from train.eval.measures.features import EFFICIENTNET
from train.eval.scores import Scores, load_scores, save_scores
from train.eval.summary import ScoredVideo, by_start, comparability, difference, facts_of, figure, set_distance


def video(name: str, value: float | None = 1.0, image: str | None = None, **facts: object) -> ScoredVideo:
    item = Item(name, Path(name), None if image is None else Path(image))
    known = {"width": 8, "height": 8, "fps": 24.0, "codec": "h264", "crf": 18.0, "frames": 20, **facts}
    return ScoredVideo(item, known, {"m": Scores({"v": value}, {"sharpness": [1.0] * 10 + [3.0] * 10}, 24.0)})


def test_samples_of_one_start_image_count_once() -> None:
    videos = [video("a-0.mp4", 1, "a.png"), video("a-1.mp4", 3, "a.png"), video("b.mp4", 6), video("c.mp4", None)]
    values = by_start(videos, "v")
    assert values == {"a": 2, "b": 6}
    found = figure(values)
    assert found is not None
    assert (found["mean"], found["n"]) == (4, 2)


def test_differences_are_paired_by_start_image() -> None:
    found = difference({"a": 1, "b": 5, "c": 9}, {"b": 4, "c": 7, "d": 0})
    assert found is not None
    assert (found["mean"], found["n"]) == (1.5, 2)
    assert 1 <= found["low"] <= found["high"] <= 2
    assert difference({"a": 1}, {"b": 1}) is None


def test_one_value_has_no_interval() -> None:
    assert figure({"a": 2.0}) == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert figure({}) is None


def test_drift_is_a_figure_too() -> None:
    assert by_start([video("a.mp4")], "sharpness.share", drift=True) == {"a": 2}
    assert by_start([video("a.mp4")], "sharpness.seconds", drift=True) == {}


def features(count: int, shift: float = 0.0) -> list[ScoredVideo]:
    vectors = torch.randn(count, 6, generator=torch.Generator().manual_seed(count)) + shift
    scores: Mapping[str, Scores] = {EFFICIENTNET.key: Scores(features={"efficientnet": vectors})}
    return [ScoredVideo(Item("a", Path("a")), {}, scores)]


def test_distances_between_sets_come_with_their_floor_and_a_warning() -> None:
    assert EFFICIENTNET.distance is not None
    found, warnings = set_distance(EFFICIENTNET.distance, EFFICIENTNET, features(40, 1.0), features(60))
    assert found is not None
    assert found["value"] == pytest.approx(6, rel=0.5)
    assert (found["n"], found["n_reference"]) == (40, 60)
    assert 0 < found["floor"] < found["value"]
    assert "fewer than 1280" in warnings[0]


def test_a_reference_without_vectors_gives_no_distance() -> None:
    assert EFFICIENTNET.distance is not None
    found, warnings = set_distance(EFFICIENTNET.distance, EFFICIENTNET, features(40), [])
    assert found is None
    assert "40 and 0 feature vectors" in warnings[0]


def test_features_that_are_not_finite_give_no_distance() -> None:
    assert EFFICIENTNET.distance is not None
    broken = features(40)
    broken[0].scores[EFFICIENTNET.key].features["efficientnet"][3, 2] = torch.inf
    found, warnings = set_distance(EFFICIENTNET.distance, EFFICIENTNET, broken, features(60))
    assert found is None
    assert "features of this folder are not finite" in warnings[-1]


def test_folders_that_differ_are_named() -> None:
    facts = {"a": facts_of([video("a.mp4")]), "b": facts_of([video("a.mp4", fps=30.0, crf=None)])}
    warnings = "\n".join(comparability(facts))
    assert "frame rate (a 24, b 30)" in warnings
    assert "encoding (a h264 crf 18, b h264)" in warnings
    assert "Few start images (a 1, b 1)" in warnings
    assert "length" not in warnings


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = Scores(
        {"a": 0.1, "none": None},
        {"c": [1.0, float("nan")]},
        24.0,
        {"f": torch.rand(3, 2)},
        {"p": torch.zeros(2, 2, 3, dtype=torch.uint8)},
        ["note"],
        None,
    )
    save_scores(tmp_path / "s.safetensors", scores, {"fps": 24.0})
    found = load_scores(tmp_path / "s.safetensors")
    assert found is not None
    assert found[0].values == scores.values
    assert found[0].curves["c"][0] == 1.0
    assert found[0].curves["c"][1] != found[0].curves["c"][1]
    assert torch.equal(found[0].features["f"], scores.features["f"])
    assert (found[0].notes, found[1]) == (["note"], {"fps": 24.0})


def test_a_file_that_was_cut_off_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_scores(path, Scores({"a": 1.0}), {})
    path.write_bytes(path.read_bytes()[:-20])
    assert load_scores(path) is None
    assert load_scores(tmp_path / "absent") is None


def test_the_names_of_all_numbers_differ() -> None:
    names = [column.name for measure in all_measures(16) for column in measure.columns]
    names += [measure.distance.column.name for measure in all_measures(16) if measure.distance is not None]
    assert len(names) == len(set(names))
