"""The comparison of models: its rows and files, and what it refuses before it samples."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train.pocket.evaluate
from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.pocket.files import TEACHER
from train.pocket.evaluate import FLOOR, OF_ALL, OF_CLIPS, evaluate
from train.pocket.measuring.contenders import Contender, baselines_of, teacher_contenders


def test_a_file_without_recipe_is_refused_before_anything_is_sampled(tmp_path: Path, teacher_file: Path) -> None:
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out.json"
    save_file(load_checkpoint(teacher_file).state, plain)
    contenders = [Contender("teacher", teacher_file, 4), Contender("other", plain, 4)]
    with pytest.raises(CheckpointError, match=r"plain\.safetensors \(other\) .*recipe.*magicdistill export"):
        evaluate(contenders, [], 2, 2, out)
    assert not out.exists()


def test_two_rows_of_one_name_are_refused(tmp_path: Path, teacher_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"name a\. Give each model"):
        evaluate([Contender("a", teacher_file, 4), Contender("a", teacher_file, 8)], [], 2, 2, tmp_path / "out.json")


def test_the_comparison_of_the_shipped_teacher(tmp_path: Path) -> None:
    """Three clips: the teacher's samples are worse than other futures, and the record repeats the tables."""
    out = tmp_path / "results" / "out.json"
    teachers = teacher_contenders(TEACHER, [4, 1])
    text = evaluate(teachers, baselines_of(teachers), 3, 2, out)
    record = json.loads(out.read_text())
    four, one = (contender.name for contender in teachers)
    assert list(record["values"]) == [FLOOR, four, one]
    for measure in ("energy_latents", "energy_pixels"):
        means = {name: torch.tensor(of[measure]).mean() for name, of in record["values"].items()}
        assert {len(of[measure]) for of in record["values"].values()} == {3}
        assert means[FLOOR] < means[four] < means[one]
        interval = record["intervals"][measure][one]
        assert interval["value"]["mean"] == pytest.approx(float(means[one]))
        assert interval["differences"][four]["mean"] == pytest.approx(float(means[one] - means[four]), abs=1e-6)
        assert f"{interval['value']['low']:.4f}, {interval['value']['high']:.4f}" in text
    assert text.count("| minus teacher, 4 steps |") == 2
    assert "intact" not in text


def test_with_a_reader_faces_and_motion_have_columns(
    tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measures themselves are replaced; their values of each row must arrive in the tables."""

    class Replaced:
        def __init__(self, *given: object) -> None:
            self.row = 0.0

        def of_data(self) -> tuple[dict, None]:
            return self.of_contender()

        def of_contender(self, *given: object) -> tuple[dict, None]:
            self.row += 0.1
            of_clips = {measure: [self.row, self.row] for measure in OF_CLIPS}
            return of_clips | {measure: [self.row, self.row - 0.1, self.row + 0.1] for measure in OF_ALL}, None

    monkeypatch.setattr(train.pocket.evaluate, "Measures", Replaced)
    monkeypatch.setattr(train.pocket.evaluate, "hold_out", lambda *given: None)
    monkeypatch.setattr(train.pocket.evaluate, "load_reader", lambda file: file)
    contenders = [Contender("a", teacher_file, 1), Contender("b", teacher_file, 1)]
    text = evaluate(contenders, ["a"], 8, 2, tmp_path / "out.json", reader_file=tmp_path)
    assert "| b | 0.3000 [0.3000, 0.3000] | 0.1000 [0.1000, 0.1000] |" in text
    assert "| b | 0.3000 [0.2000, 0.4000] | 0.3000 [0.2000, 0.4000] |" in text
    for title in (*OF_CLIPS.values(), *OF_ALL.values()):
        assert f"| {title} |" in text
