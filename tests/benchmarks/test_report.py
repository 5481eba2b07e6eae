"""The committed page matches the committed results, and a killed run keeps its rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PAGE, RESULTS
from benchmarks.findings import findings, targets
from benchmarks.kernels import by_kind, kind_of
from benchmarks.report import performance_page, render
from benchmarks.runs import together, unmeasured
from benchmarks.store import Store
from benchmarks.tables import table, tables

CLIP = "81 frames at 544x960"
COMPUTED = f"{CLIP}: iteration, computed from one update of each"
EAGER, COMPILED = (f"compiled blocks, 33 frames at 544x960: {kind}" for kind in ("eager", "compiled"))


def run_of(day: int, status: str = "done", **benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
    """A run at 13B sizes in January 2026."""
    machine = {"date": f"2026-01-{day:02}T10:20:30+00:00", "commit": f"c{day}", "device": "Card X", "sizes": "13B"}
    entries = {name: {"status": status, "rows": rows} for name, rows in benchmarks.items()}
    return {"format": 1, "machine": machine, "benchmarks": entries}


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == performance_page(RESULTS)
    for results in RESULTS.glob("*.json"):
        assert results.with_suffix(".md").read_text(encoding="utf-8") == render([Store(results).read()])


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    store = Store(tmp_path / "run.json")
    store.begin("forward")
    store.add("forward", {"case": CLIP, "seconds": 4.25})
    assert json.loads(store.path.read_text())["benchmarks"]["forward"] == {
        "status": "begun",
        "rows": [{"case": CLIP, "seconds": 4.25}],
    }


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        Store(tmp_path / "old.json").read()


def test_a_table_has_every_column_and_one_repeat_has_no_spread() -> None:
    rows = [
        {"case": "a", "ratio": 1.5, "seconds": 0.25, "spread": 0.0, "repeats": 1},
        {"case": "b", "pflop": 0.5, "spread": 0.25, "repeats": 2, "seconds_min": 0.1},
    ]
    assert table(rows) == [
        "| what | median s | spread | repeats | TFLOP | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 0.25 |  | 1 |  | 1.5 |",
        "| b |  | 25.0% | 2 | 500 |  |",
    ]


def test_every_group_has_its_table() -> None:
    rows = [
        {"case": "clip: one", "tokens": 7, "seconds": 1.0, "note": "a note"},
        {"case": "alone", "seconds": 3.0},
        {"case": "clip: two", "tokens": 7, "ratio": 2.0},
    ]
    grouped = table([{"case": "one", "seconds": 1.0}, {"case": "two", "ratio": 2.0}])
    assert tables(rows) == [*table([rows[1]]), "", "**clip** (7 tokens)", "", *grouped, "", "- one: a note"]


def test_kernels_are_summed_by_what_they_do() -> None:
    rows = [
        {"case": "time: nvjet_sm90_tst_192x208_64x4_TNT", "part": 0.25, "seconds": 1.0, "calls": 3},
        {"case": "time: direct_copy_kernel", "part": 0.125, "seconds": 0.5, "calls": 4},
        {"case": "time: sm80_xmma_gemm_bf16", "part": 0.25, "seconds": 1.0, "calls": 2},
    ]
    assert by_kind(rows) == [
        {"case": "time: matrix products", "part": 0.5, "seconds": 2.0, "calls": 5},
        {"case": "time: everything else", "part": 0.375, "seconds": 1.5},
        {"case": "time: casts, copies and concatenations", "part": 0.125, "seconds": 0.5, "calls": 4},
    ]
    assert kind_of("cudnn_generated_fort_native_sdpa_sm90_flash_fprop") == "attention"


def test_a_row_is_of_the_newest_run_that_measured_it() -> None:
    old = run_of(1, forward=[{"case": "33 frames", "seconds": 2.0}, {"case": CLIP, "seconds": 4.0}])
    page = render([old, run_of(2, forward=[{"case": CLIP, "seconds": 3.0}])])
    newer, older = page.split("Run of 2026-01-02 10:20, commit c2:")[1].split("Run of 2026-01-01 10:20, commit c1:")
    assert f"| {CLIP} | 3 |" in newer
    assert "| 33 frames | 2 |" in older
    assert f"| {CLIP} | 4 |" not in page


def test_a_sentence_compares_rows_of_one_run() -> None:
    old = run_of(
        1, forward=[{"case": EAGER, "seconds": 4.0}, {"case": COMPILED, "seconds": 2.0, "first_call_seconds": 9.0}]
    )
    new = run_of(2, forward=[{"case": EAGER, "seconds": 1.0}])
    (sentence,) = findings([old, new])
    assert sentence.startswith("Compiled blocks make a forward 2.00 times as fast")
    with pytest.raises(LookupError, match="compiled"):
        together([new], "forward", EAGER, COMPILED)


def test_targets_are_met_or_missed() -> None:
    def ratios(ratio: float) -> list[str]:
        return [row["target"] for row in targets([run_of(1, iteration=[{"case": COMPUTED, "ratio": ratio}])])]

    assert (ratios(1.05), ratios(1.051)) == (["at most 1.05: met"], ["at most 1.05: missed"])


def test_what_no_run_measured_is_named_with_its_reason() -> None:
    late, full = "not run: out of time", "out of memory"
    choice = {"case": f"{CLIP}: forward without a branch", "seconds": 1.0}
    tried = run_of(2, iteration=[{"case": CLIP, "error": late}, choice])
    # The row of a choice (here: no branch) does not count as a measurement of the updates of that clip.
    assert unmeasured([tried]) == {"out of time": [f"{CLIP} (iteration)"]}
    measured = run_of(1, iteration=[{"case": COMPUTED, "ratio": 1.0}])
    assert unmeasured([tried, measured]) == {}
    # A failure of the newest run is listed although an older run succeeded.
    failed = run_of(3, iteration=[{"case": CLIP, "error": full}, choice])
    assert unmeasured([tried, measured, failed]) == {full: [f"{CLIP} (iteration)"]}
    killed = run_of(4, "ended: it exceeded its time limit", iteration=[choice])
    assert unmeasured([measured, killed]) == {"ended: it exceeded its time limit": ["the rest of iteration"]}


def test_a_page_has_each_machine_and_links_to_pocket_runs(tmp_path: Path) -> None:
    big, pocket = run_of(1, forward=[{"case": CLIP, "seconds": 4.0}]), run_of(2, data=[])
    pocket["machine"] |= {"sizes": "pocket", "remark": "of a laptop"}
    for name, document in {"big": big, "small": pocket}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    page = performance_page(tmp_path)
    assert "## Card X, 13B sizes" in page
    assert "- not requested: iteration, sampling, loading, autoencoder, data, context_parallel\n" in page
    assert page.endswith(
        "- [small](../benchmarks/results/small.md): Card X, 2026-01-02 10:20, commit c2 (of a laptop)\n"
    )
