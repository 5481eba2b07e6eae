"""The page of the tables: it equals its results, and its numbers are those of the cells."""

from pathlib import Path
from typing import Any

import pytest

from magicdistill_core.errors import ConfigError
from magicdistill_core.metrics.bootstrap import Interval
from train.pocket.tables.claims import CLAIMS, Claim, verdict
from train.pocket.tables.design import Design
from train.pocket.tables.page import BEGIN, END, copy_sheets, generated_part, sheets_of, write_page
from train.pocket.tables.records import read_results

ROOT = Path(__file__).parents[4]
PAGE, RESULTS = ROOT / "docs" / "fidelity.md", ROOT / "docs" / "results" / "pocket_tables.json"
CLIPS = 6


def record(shift: float, **facts: Any) -> dict[str, Any]:
    """A record whose values are those of every other record plus a constant."""
    values = [shift + 0.1 * clip for clip in range(CLIPS)]
    intact = [min(1.0, max(0.0, 0.5 - shift + 0.01 * clip)) for clip in range(CLIPS)]
    measures = {
        "energy_pixels": values,
        "energy_latents": [10 * value for value in values],
        "intact": intact,
        "identity": [1.0] * CLIPS,
        "motion_distance": [0.25 + shift, 0.2 + shift, 0.3 + shift],
        "two_sample": [0.6, 0.5, 0.7],
    }
    return {"machine": "a machine", "measures": measures, **facts}


def results() -> dict[str, Any]:
    trained = {"updates": 70, "update": 56, "calls": 1630.0, "seconds": 360.0, "finding": None, "ended_at": None}
    cells = {"floor": record(-0.3), "euler-28": record(-0.2), "euler-4": record(0.0)}
    cells |= {f"w2s-4-seed{seed}": record(-0.2, **trained | {"update": 49 + 7 * seed}) for seed in range(3)}
    cells["dmd-4-seed0"] = record(-0.1, **trained)
    slow = "collapse-dmd-slow"
    found = {"finding": [210, "validation/energy rose"]}
    cells[f"{slow}-000080"] = record(0.1, **trained | found)
    cells[f"{slow}-000160"] = {"machine": "a machine", **trained, "ended_at": 150}
    return {"clips": CLIPS, "seeds": 4, "calls": 1630, "portraits": 2048, "cells": cells}


def rows_of(text: str, label: str) -> list[list[str]]:
    """The cells of all rows of the page whose first cell is the label."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if line[0] == label]


def test_the_committed_page_equals_its_results() -> None:
    part = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert part == generated_part(read_results(RESULTS) if RESULTS.exists() else None, sheets_of(PAGE))


def test_without_results_the_page_shows_the_numbers_of_the_paper() -> None:
    part = generated_part(None)
    assert rows_of(part, "W2S, 4 steps") == [["W2S, 4 steps", "0.8219", "163.40, 233.80, 542.72"]]
    assert "Teacher, 8 steps" not in part


def test_differences_are_those_of_the_clips_and_seeds() -> None:
    quality, latents, faces = rows_of(generated_part(results()), "W2S, 4 steps")
    # Equal on every clip, so the interval has no width.
    assert quality[1:5] == [
        "49, 56, 63 of 70",
        quality[2],
        "0.0000 (0.0000 to 0.0000)",
        "**-0.2000 (-0.2000 to -0.2000)**",
    ]
    assert quality[2].startswith("0.0500 (")
    assert quality[5:] == ["0.8219", "163.40, 233.80, 542.72"]
    assert latents[3] == "**-2.0000 (-2.0000 to -2.0000)**"
    assert faces[1].startswith("72.5 % (")
    assert faces[3] == "**+20.0 % (+20.0 % to +20.0 %)**"
    assert faces[5:] == ["0.0500 (0.0000 to 0.1000)", "60.0 % (50.0 % to 70.0 %)"]


def test_the_guard_s_first_finding_and_an_early_end_are_shown() -> None:
    part = generated_part(results())
    (early,) = rows_of(part, "DMD, batch 4, slow fake score, 80 updates")
    assert early[-1] == "update 210: validation/energy rose"
    (late,) = rows_of(part, "DMD, batch 4, slow fake score, 160 updates")
    assert late[2:6] == ["", "", "", ""]
    assert "ended at update 150" in late[-1]


def test_claims_are_judged_by_their_intervals() -> None:
    part = generated_part(results())
    texts = [line for line in part.splitlines() if line.startswith("| W2S with 4 steps is not worse")]
    assert len(texts) == 2
    assert all(line.endswith("| holds |") for line in texts)
    strict, lenient = (Claim("", "", "a", "b", equal_is_enough=equal) for equal in (False, True))
    better, equal, worse = Interval(-1, -2, -0.1), Interval(0, -1, 1), Interval(1, 0.1, 2)
    found = [[verdict(claim, of, higher=False) for of in (better, equal, worse)] for claim in (strict, lenient)]
    assert found == [["holds", "not decided", "does not hold"], ["holds", "holds", "does not hold"]]
    assert verdict(strict, better, higher=True) == "does not hold"


def test_claims_are_about_rows_of_the_tables() -> None:
    rows = {row.name for table in Design().tables[:2] for row in table.rows}
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} <= rows


def test_only_the_part_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, results(), ["fidelity_floor.jpg"])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n")
    assert text.endswith(f"![floor](images/fidelity_floor.jpg)\n\n{END}\nafter\n")
    assert "\nold\n" not in text
    page.write_text("nothing")
    with pytest.raises(ConfigError, match=r"page\.md has no part between"):
        write_page(page, None)


def test_contact_sheets_are_copied_next_to_the_page(tmp_path: Path) -> None:
    sheets, page = tmp_path / "sheets", tmp_path / "docs" / "page.md"
    sheets.mkdir()
    for name in ("euler-4", "w2s-4-seed0"):
        (sheets / f"{name}.jpg").write_bytes(name.encode())
    copy_sheets(sheets, ["w2s-4-seed0", "euler-4"], page)
    assert sheets_of(page) == ["fidelity_euler-4.jpg", "fidelity_w2s-4-seed0.jpg"]
    assert (tmp_path / "docs" / "images" / "fidelity_euler-4.jpg").read_bytes() == b"euler-4"
    with pytest.raises(ConfigError, match=r"no contact sheet of dmd\. There are: euler-4, w2s-4-seed0"):
        copy_sheets(sheets, ["dmd"], page)
