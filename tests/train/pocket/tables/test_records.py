"""Records of cells: of which measures they are, and what a folder of runs belongs to."""

from pathlib import Path

import pytest

from magicdistill_core.errors import ConfigError
from train.pocket.tables.records import Records, check_inputs, read_results, write_results


def test_a_record_of_other_measures_is_none(tmp_path: Path) -> None:
    records = Records(tmp_path, {"reader": "a", "clips": 2})
    assert records.read("w2s") is None
    records.write("w2s", {"measures": {"intact": [1.0, 0.5]}})
    assert records.all(["dmd", "w2s"]) == {"w2s": {"measures": {"intact": [1.0, 0.5]}}}
    assert Records(tmp_path, {"reader": "b", "clips": 2}).all(["w2s"]) == {}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "w2s.json").write_text('{"measures": ')
    with pytest.raises(ConfigError, match=r"w2s\.json is damaged .*Delete it"):
        Records(tmp_path, {}).read("w2s")


def test_a_folder_of_runs_belongs_to_its_inputs(tmp_path: Path) -> None:
    check_inputs(tmp_path, {"teacher": "a", "calls": 10})
    check_inputs(tmp_path, {"teacher": "a", "calls": 10})
    with pytest.raises(ConfigError, match=r"other inputs \(calls: 10, now 20\).*--runs"):
        check_inputs(tmp_path, {"teacher": "a", "calls": 20})


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    out = tmp_path / "results" / "tables.json"
    cells = {"a": {"measures": {"intact": [1.0]}}, "b": {}}
    for written in (cells, {}):
        write_results(out, {"clips": 2, "extra": []}, written)
        assert read_results(out) == {"clips": 2, "extra": [], "cells": written}
    out.write_text("[]")
    with pytest.raises(ConfigError, match="has no results of the tables"):
        read_results(out)
