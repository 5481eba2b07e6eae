from pathlib import Path

import pytest

from magicdistill_core.files import write_text
from train.eval.papers_page import DOCS, TABLES, VBENCH, papers_tables, write_papers_page
from train.pocket.tables.papers import PAPER


def test_every_row_has_a_number_for_each_column() -> None:
    assert [len(table.rows) for table in TABLES] == [10, 4, 7, 7, 7, 7, 3, 7]
    assert all(len(row.values) == len(table.columns) for table in TABLES for row in table.rows)


def test_averages_are_those_of_their_dimensions() -> None:
    # Of two rows the paper states another average than its own dimensions have.
    wrong = []
    for table in TABLES:
        if table.columns == VBENCH:
            for row in table.rows:
                if abs(sum(row.values[:-1]) / 7 - row.values[-1]) > 6e-4:
                    wrong.append((table.title.split(":")[0], row.method, row.steps))
    assert len(wrong) <= 2, wrong


def test_the_numbers_are_those_of_the_pocket_tables() -> None:
    first = {row.name: row.values[-1] for row in TABLES[0].rows}
    assert {name: row.vbench for name, row in PAPER.items() if row.vbench is not None and name in first}.items() <= (
        first.items()
    )
    for place, table in enumerate(TABLES[3:6]):
        found = {row.name: row.values[1] for row in table.rows}
        assert all(found[name] == row.fvd[place] for name, row in PAPER.items() if row.fvd)


def test_our_rows_come_from_results() -> None:
    figure = {"mean": 0.5, "low": None, "high": None, "n": 3}
    system = {"reference": False, "figures": {"temporal_flickering": figure}, "distances": {}}
    text = papers_tables({"13b": {"systems": {"w2s-4": system}}})
    line = next(line for line in text.splitlines() if line.startswith("| *ours, 13B*: `w2s-4` "))
    assert [part.strip() for part in line.strip("|").split("|")][2:] == [*[""] * 6, "0.5000", ""]
    empty = next(line for line in text.splitlines() if line.startswith("| *ours, pocket*: `w2s-4` "))
    assert not empty.split("|", 3)[3].replace("|", "").strip()


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    write_text(tmp_path / "evaluation.md", text)
    results = DOCS / "results" / "evaluation"
    for path in results.glob("*.json") if results.is_dir() else []:
        write_text(tmp_path / "results" / "evaluation" / path.name, path.read_text(encoding="utf-8"))
    write_papers_page(tmp_path)
    assert (tmp_path / "evaluation.md").read_text(encoding="utf-8") == text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "evaluation.md", "nothing")
    with pytest.raises(ValueError, match="begin: networks"):
        write_papers_page(tmp_path)
