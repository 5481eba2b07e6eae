"""Tables and claims out of a fixture; a run that is killed keeps its rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PAGE, RESULTS
from benchmarks.claims import claims
from benchmarks.kernels import by_kind, kind_of
from benchmarks.predictions import PREDICTIONS, outcomes
from benchmarks.report import performance_page, render
from benchmarks.store import Store
from benchmarks.tables import missing, table, tables


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


def test_a_table_has_every_column_and_one_repeat_has_no_spread() -> None:
    rows = [
        {"case": "a", "ratio": 1.5, "seconds": 0.25, "spread": 0.0, "repeats": 1},
        {"case": "b", "pflop": 0.5, "spread": 0.25, "repeats": 2, "seconds_min": 0.1},
    ]
    assert table(rows) == [
        "| what | median s | spread | repeats | TFLOP | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 0.25 |  | 1 |  | 1.5 |",
        "| b |  | 25.0 % | 2 | 500 |  |",
    ]


def test_every_group_has_its_table() -> None:
    rows = [
        {"case": "clip: one", "tokens": 7, "seconds": 1.0, "note": "a note"},
        {"case": "alone", "seconds": 3.0},
        {"case": "clip: failed", "error": "out of memory"},
        {"case": "clip: two", "tokens": 7, "ratio": 2.0},
    ]
    assert list(tables(rows)) == [
        *table([rows[1]]),
        "",
        "**clip** (7 tokens)",
        "",
        *table([{"case": "one", "seconds": 1.0}, {"case": "two", "ratio": 2.0}]),
        "",
        "- one: a note",
    ]
    assert list(tables([{"case": "nothing but its name"}])) == []


def test_what_was_not_measured_is_told_by_reason() -> None:
    benchmarks = {
        "forward": {"rows": [{"case": "a", "error": "not run: no GPU"}, {"case": "b", "seconds": 1.0}]},
        "sampling": {"rows": [{"case": "c", "error": "not run: no GPU"}, {"case": "d", "error": "out of memory"}]},
    }
    assert list(missing(benchmarks)) == ["a (forward); c (sampling): no GPU", "d (sampling): out of memory"]


def test_kernels_are_summed_by_what_they_do() -> None:
    rows = [
        {"case": "time: nvjet_sm90_tst_192x208_64x4_TNT", "part": 0.25, "seconds": 1.0, "calls": 3},
        {
            "case": "time: void at::native::unrolled_elementwise_kernel<direct_copy_k",
            "part": 0.125,
            "seconds": 0.5,
            "calls": 4,
        },
        {"case": "time: sm80_xmma_gemm_bf16", "part": 0.25, "seconds": 1.0, "calls": 2},
    ]
    assert by_kind(rows) == [
        {"case": "time: matrix products", "part": 0.5, "seconds": 2.0, "calls": 5},
        {"case": "time: everything else", "part": 0.375, "seconds": 1.5},
        {"case": "time: casts, copies and concatenations", "part": 0.125, "seconds": 0.5, "calls": 4},
    ]
    assert kind_of("cudnn_generated_fort_native_sdpa_sm90_flash_fprop") == "attention"
    assert kind_of("aten::addmm") == kind_of("ampere_bf16_s16816gemm") == "matrix products"


def test_outcomes_are_the_newest_numbers_or_not_measured(results: Path) -> None:
    def run(date: str, seconds: float) -> dict[str, Any]:
        rows = [{"case": f"{n} frames at 544x960", "seconds": n * seconds, "of_matmul": 0.5} for n in (81, 129)]
        return {"machine": {"date": date}, "benchmarks": {"forward": {"status": "done", "rows": rows}}}

    table = "\n".join(outcomes([run("2026-01-02", 2.0), run("2026-01-01", 1.0), Store(results).read()]))
    assert "| 162.00 s and 258.00 s, 50 % and 50 % of a plain product's rate |" in table
    assert table.count("| not measured") == len(PREDICTIONS) - 1
    # As the iteration of the last of them has not ended.
    assert "| not measured: begun |" in table


LONGEST = "129 frames at 544x960"
COMPUTED = "iteration, computed from one update of each"


def run_of(commit: str, day: int, status: str = "done", **benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
    """A run of 13B on one card."""
    return {
        "machine": {
            "date": f"2026-01-{day:02}",
            "commit": commit,
            "device": "Card X",
            "sizes": "13B",
            "device_memory_gb": 150,
            "cpu": "CPU",
            "cores": 1,
            "memory_gb": 2,
            "system": "S",
            "python": "3",
            "versions": {"torch": str(day)},
        },
        "benchmarks": {name: {"status": status, "rows": rows} for name, rows in benchmarks.items()},
    }


def updates(frames: int, gigabytes: float) -> list[dict[str, Any]]:
    clip = f"{frames} frames at 544x960"
    return [
        {"case": f"{clip}: bare forward", "seconds": 1.0, "repeats": 1},
        {"case": f"{clip}: {COMPUTED}", "tokens": frames, "peak_gb": gigabytes, "ratio": 1.0},
    ]


def longest(*documents: dict[str, Any]) -> str:
    """What is said of the claim that 129 frames fit."""
    (line,) = [line for line in outcomes(documents) if "can be trained in 141 GB" in line]
    return line.split(" | ")[1]


def test_running_out_of_memory_is_the_answer_to_whether_a_length_fits() -> None:
    late = {"case": LONGEST, "error": "not run: out of time (needs about 157 s)"}
    full = {"case": LONGEST, "error": "out of memory"}
    measured = run_of("a", 1, iteration=[*updates(33, 45.1), late])
    assert longest(measured) == "not measured: out of time (needs about 157 s); 45.1 GB at 33 frames at 544x960"
    failed = run_of("b", 2, iteration=[*updates(33, 46), *updates(81, 90), full])
    answer = f"{LONGEST}: out of memory (Card X, 150 GB, commit b)"
    assert longest(measured, failed) == f"{answer}; 90.0 GB at 81 frames at 544x960"
    # Want of time in a newer run takes nothing from it.
    assert longest(run_of("c", 3, iteration=[late]), failed).startswith(answer)
    fitted = updates(129, 130)
    assert longest(run_of("c", 3, iteration=fitted), failed) == f"130.0 GB at {LONGEST}"
    assert longest(run_of("0", 1, iteration=fitted), failed) == f"130.0 GB at {LONGEST}; in a newer run {answer}"


def test_what_all_cases_need_or_a_crash_is_told_as_the_reason() -> None:
    assert longest(run_of("a", 1, iteration=[{"case": "build", "error": "out of memory"}])) == (
        "build: out of memory (Card X, 150 GB, commit a)"
    )
    crashed = run_of("a", 1, "failed: exit status -9", iteration=updates(33, 45))
    assert longest(crashed) == "not measured: failed: exit status -9; 45.0 GB at 33 frames at 544x960"
    assert longest(run_of("a", 1, sampling=[])) == "not measured"


def test_what_is_compared_in_a_sentence_ran_together() -> None:
    group = "attention in the forward, 33 frames at 544x960"
    masked, ours = f"{group}: PyTorch's choice, masked", f"{group}: as it is"
    old = run_of("a", 1, forward=[{"case": masked, "seconds": 4.0}, {"case": ours, "seconds": 2.0}])
    new = run_of("b", 2, forward=[{"case": masked, "error": "out of memory"}, {"case": ours, "seconds": 1.0}])
    said = "\n".join(outcomes([old, new]))
    assert f"4.000 s with it, 2.000 s without at 33 frames at 544x960: 50 % less; in a newer run {masked}: out" in said


def page_of(folder: Path, **runs: dict[str, Any]) -> str:
    for name, document in runs.items():
        (folder / f"{name}.json").write_text(json.dumps({"format": 1} | document))
    return performance_page(folder)


def test_a_newer_run_of_one_benchmark_leaves_the_others_on_the_page(tmp_path: Path) -> None:
    forward = [{"case": "81 frames", "seconds": 4.0}]
    page = page_of(
        tmp_path,
        old=run_of("a", 1, forward=forward, iteration=[*updates(33, 40), {"case": LONGEST, "error": "not run: late"}]),
        new=run_of("b", 2, iteration=updates(129, 130)),
    )
    assert "- 2026-01-02, commit b: iteration\n  - CPU" in page
    # What the newer run's lines said of the machine is not said again.
    assert "- 2026-01-01, commit a: forward\n  - Python 3, torch 1\n\n" in page
    assert "### One forward of the transformer\n\nMeasured 2026-01-01, commit a.\n" in page
    assert "### One iteration of training\n\nMeasured 2026-01-02, commit b.\n" in page
    assert "| 81 frames | 4 |" in page
    assert f"**{LONGEST}** (" not in page
    assert f"**{LONGEST}**" in page
    # The newer run was complete, and what it measured is no longer missing.
    assert "33 frames at 544x960**" not in page
    assert "Rows of an older run, for" not in page
    assert "Not measured:\n\n- sampling, loading, autoencoder, data: not asked for in any run\n" in page
    assert "## Other runs" not in page


def test_rows_stay_where_a_newer_run_failed_and_are_named(tmp_path: Path) -> None:
    choice = {"case": "81 frames at 544x960: forward without a branch", "seconds": 1.0, "ratio": 0.9}
    late = "not run: out of time"
    page = page_of(
        tmp_path,
        old=run_of("a", 1, iteration=[*updates(33, 40), *updates(129, 130), choice]),
        new=run_of(
            "b",
            2,
            iteration=[
                *updates(33, 41),
                {"case": LONGEST, "error": "out of memory"},
                {"case": "81 frames at 544x960", "error": late},
                {"case": choice["case"], "error": late},
            ],
        ),
    )
    assert (
        "Rows of an older run, for want of newer ones:\n\n"
        f"- {LONGEST} (iteration), measured 2026-01-01, commit a; in a newer run: out of memory\n"
        f"- {choice['case']} (iteration), measured 2026-01-01, commit a; in a newer run: out of time\n\n"
        # The choice's row is none of the updates' at that length.
        "Not measured:\n\n- 81 frames at 544x960 (iteration): out of time\n"
    ) in page
    assert f"**{LONGEST}**, measured 2026-01-01, commit a\n" in page
    assert page.count("**33 frames at 544x960**") == 1
    assert f"the longest clip of which training updates ran is {LONGEST}: 130.0 GB" in page
    assert f"130.0 GB at {LONGEST}; in a newer run {LONGEST}: out of memory" in page


def test_variants_of_two_runs_are_not_compared(tmp_path: Path) -> None:
    names = ("attention: as it is", "attention: cuDNN", "attention: flash")
    rows = [{"case": name, "seconds": 1.0 + number} for number, name in enumerate(names)]
    page = page_of(
        tmp_path,
        old=run_of("a", 1, forward=rows),
        new=run_of("b", 2, forward=[rows[0], rows[1], {"case": names[2], "error": "RuntimeError: no"}]),
    )
    assert "attention: fastest is as it is (1 s), slowest cuDNN (2 times as long)" in page
    assert "**attention**, measured 2026-01-01, commit a\n\n| what | median s |\n| --- | ---: |\n| flash | 3 |" in page


def test_a_run_that_measured_nothing_replaces_nothing(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        old=run_of("a", 1, forward=[{"case": "81 frames", "seconds": 4.0}]),
        new=run_of("b", 2, "not run: out of time", forward=[]),
    )
    assert "| 81 frames | 4 |" in page
    assert "- all (forward), measured 2026-01-01, commit a; in a newer run: out of time\n" in page
    assert "is incomplete" not in page
    assert "## Other runs\n\nNo row above is of these: [new]" in page


def test_a_run_that_was_ended_keeps_the_older_rows_that_it_did_not_come_to(tmp_path: Path) -> None:
    kernel = {"part": 0.5, "seconds": 1.0, "calls": 1}
    page = page_of(
        tmp_path,
        old=run_of(
            "a",
            1,
            forward=[
                {"case": "33 frames", "seconds": 2.0},
                {"case": "81 frames", "seconds": 4.0},
                {"case": "where the time goes, clip: gemm_old", **kernel},
            ],
        ),
        new=run_of(
            "b",
            2,
            "ended: it ran past its time",
            forward=[{"case": "33 frames", "seconds": 1.0}, {"case": "where the time goes, clip: gemm_new", **kernel}],
        ),
    )
    assert "| 33 frames | 1 |" in page
    assert "| 33 frames | 2 |" not in page
    assert "measured 2026-01-01, commit a\n\n| what | median s |\n| --- | ---: |\n| 81 frames | 4 |" in page
    assert "- 81 frames (forward), measured 2026-01-01, commit a; in a newer run: ended: it ran past its time" in page
    assert page.count("| matrix products | 50.0 % |") == 1


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
    assert "| 81 frames | 4.25 | 1.2 % | 60.0 % | 3 |" in page
    assert "- 129 frames (forward): out of memory | 141 GB" in page
    assert "- iteration is incomplete: begun" in page
    assert "- loading, autoencoder, data: not asked for in this run" in page
    assert page.index("## Card X") < page.index("## Expected and measured") < page.index("## Notes")


def test_pocket_sizes_have_a_summary_without_targets_and_a_link(results: Path) -> None:
    store = Store(results)
    store.set_machine(sizes="pocket")
    page = performance_page(results.parent)
    assert "- clip, 4 steps: our Euler sampler: 1.0040 times its bare calls\n" in page
    assert "Tables: [run](../benchmarks/results/run.md)" in page
    assert "| --- |" not in page
    assert "| --- |" in render(store.read())


def test_a_page_shows_the_newest_run_of_a_machine_and_links_to_others(results: Path) -> None:
    store = Store(results.with_name("later.json"))
    store.set_machine(device="Card X", sizes="13B", date="2026-02-01", cpu="C", cores=1, memory_gb=1, system="S")
    store.set_machine(python="3", versions={})
    for name, entry in Store(results).read()["benchmarks"].items():
        store.begin(name)
        for row in entry["rows"]:
            store.add(name, row)
        store.end(name, "done", 1)
    page = performance_page(results.parent)
    assert page.count("## Card X, 13B sizes") == 1
    assert "- 2026-02-01, commit unknown" in page
    assert "No row above is of these: [run](../benchmarks/results/run.md)" in page


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        Store(path).read()


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == performance_page(RESULTS)
    for results in RESULTS.glob("*.json"):
        assert results.with_suffix(".md").read_text(encoding="utf-8") == render(Store(results).read())
