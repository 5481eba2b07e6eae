"""Tables and claims out of a fixture; a run that is killed keeps its rows."""

import json
from pathlib import Path

import pytest

from benchmarks.claims import claims
from benchmarks.report import performance_page, render, table, tables
from benchmarks.store import Store


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    store = Store(path)
    store.set_machine(device="Card X", sizes="13B", matmul_tflops=780.123, copy_gb_per_s=4300.4)
    store.begin("forward")
    store.add("forward", {"case": "81 frames", "seconds": 4.25, "spread": 0.0123, "of_matmul": 0.6, "repeats": 3})
    store.add("forward", {"case": "129 frames", "error": "out of memory | 141 GB"})
    store.end("forward", "done", 12.34)
    store.begin("sampling")
    store.add("sampling", {"case": "clip, 4 steps: bare forwards", "seconds": 4.0, "ratio": 1.0})
    store.add("sampling", {"case": "clip, 4 steps: our Euler sampler", "seconds": 4.1, "ratio": 1.004})
    store.end("sampling", "done", 3)
    store.begin("iteration")
    for frames, tokens, ratio in ((81, 43000, 1.04), (129, 67000, 1.2)):
        name = f"{frames} frames: iteration, computed from one update of each"
        store.add("iteration", {"case": name, "tokens": tokens, "ratio": ratio, "peak_gb": frames + 1.0})
    return path


def test_rows_are_on_disk_as_soon_as_they_are_added(results: Path) -> None:
    document = json.loads(results.read_text())
    assert document["benchmarks"]["iteration"]["status"] == "begun"
    assert len(document["benchmarks"]["iteration"]["rows"]) == 2
    assert document["benchmarks"]["forward"]["whole_seconds"] == 12.3


def test_a_table_has_every_column_and_errors_last() -> None:
    lines = table([{"case": "a", "error": "no"}, {"case": "b", "seconds": 0.5, "part": 0.25}])
    assert lines == [
        "| what | median s | part | not measured because |",
        "| --- | ---: | ---: | --- |",
        "| a |  |  | no |",
        "| b | 0.5 | 25.0 % |  |",
    ]


def test_a_new_table_begins_with_new_columns() -> None:
    rows = [{"case": "a", "seconds": 1.0}, {"case": "b", "error": "no"}, {"case": "c", "part": 0.5}]
    assert list(tables(rows)) == [*table(rows[:2]), "", *table(rows[2:])]
    assert list(tables([])) == ["No case was measured."]


def test_claims_follow_the_numbers(results: Path) -> None:
    store = Store(results)
    store.set_machine(device_memory_gb=140)
    store.add("forward", {"case": "attention: as it is", "seconds": 2.0})
    store.add("forward", {"case": "attention: masked", "seconds": 5.0})
    assert list(claims(store.read())) == [
        "one forward of 81 frames: 4.25 s, 60 % of the rate of a plain matrix product",
        "attention: fastest is as it is (2 s), slowest masked (2.5 times as long)",
        "clip, 4 steps: our Euler sampler: 1.0040 times its bare calls, target at most 1.01: **met**",
        "81 frames: iteration, computed from one update of each: 1.0400 times its bare calls, target at most 1.05: "
        "**met**",
        "129 frames: iteration, computed from one update of each: 1.2000 times its bare calls, target at most 1.05: "
        "**not met**",
        "the longest clip of which training updates ran is 129 frames: 130.0 GB at most, of 140 GB",
    ]


def test_a_page_names_the_machine_and_what_is_incomplete(results: Path) -> None:
    page = performance_page(results.parent)
    assert page.startswith("# Performance")
    assert render(Store(results).read()) in page
    assert "## Card X, 13B sizes" in page
    assert "780.1 TFLOP/s" in page
    assert "4300 GB/s" in page
    assert "| 81 frames | 4.25 | 1.2 % | 60.0 % | 3 |  |" in page
    assert "out of memory \\| 141 GB" in page
    assert "This benchmark is incomplete (begun)." in page


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        Store(path).read()
