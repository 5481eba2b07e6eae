"""The report of a review."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from train.cli import app

from .scans import scanned, write_shots

pytest.importorskip("pyarrow")
pytest.importorskip("scenedetect")


def test_the_page_shows_counts_pictures_and_damage(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_shots(tmp_path / "videos" / "a<b>.mkv", [(0, 30), (1, 12)])
    write_shots(tmp_path / "videos" / "b.mkv", [(2, 30)], faceless=lambda _: True)
    (tmp_path / "videos" / "c.mp4").write_text("no video")
    manifest = scanned(tmp_path / "m", tmp_path / "videos")
    (tmp_path / "rules.yaml").write_text("seconds: {least: 1}\nface_share: {least: 0.9}\n")
    arguments = ["data", "review", str(manifest), "--out", str(tmp_path / "r"), "--rules", str(tmp_path / "rules.yaml")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 of 4 shots are kept" in result.output
    verdicts = [json.loads(line) for line in (tmp_path / "r" / "verdicts.jsonl").read_text().splitlines()]
    assert [(v["video"], v["shot"], v["kept"], v["reasons"]) for v in verdicts] == [
        ("a<b>.mkv", 0, True, []),
        ("a<b>.mkv", 1, False, ["seconds"]),
        ("b.mkv", 0, False, ["face_share"]),
        ("c.mp4", 0, False, ["damaged"]),
    ]
    page = (tmp_path / "r" / "index.html").read_text()
    assert "a<b>" not in page
    assert "c.mp4 cannot be read" in page
    assert len(re.findall("<svg", page)) == 2
    assert page.count("data:image/jpeg;base64,") >= 4 * 4
    # The copied rules, edited, give another review at once.
    rules = tmp_path / "r" / "rules.yaml"
    rules.write_text(rules.read_text().replace("least: 1", "least: 0.4"))
    again = CliRunner().invoke(app, [*arguments[:-1], str(rules)])
    assert "2 of 4 shots are kept" in again.output
