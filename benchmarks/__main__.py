"""Measure this machine, or write a page of docs: `report` performance.md, `memory` memory.md, `times` time.md."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from magicdistill_core.files import write_text

from .report import performance_page, render
from .store import Store
from .worker import MACHINE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PAGE = ROOT / "docs" / "performance.md"
MEMORY_PAGE = ROOT / "docs" / "memory.md"
TIMES_PAGE = ROOT / "docs" / "time.md"
# The time limit of each benchmark in seconds, in running order. The last benchmark of a run has no limit but the run's.
LIMITS = {
    "forward": 160,
    "iteration": 330,
    "sampling": 160,
    "loading": 150,
    "autoencoder": 40,
    "data": 30,
    "context_parallel": 120,
}
_MACHINE_SECONDS = 60
# A benchmark starts no new case after its time is up. The process is killed this many seconds later.
_GRACE = 30

logger = logging.getLogger("benchmarks")


def measure(names: list[str], results: Path, minutes: float, pocket: bool, commit: str | None) -> None:
    """Run benchmarks one after another, each in its own process.

    Args:
        names: the benchmarks, in running order.
        results: the JSON file to write; the Markdown page is written next to it.
        minutes: time limit of the run.
        pocket: use pocket sizes also on a large GPU.
        commit: the commit that is measured; None asks git.
    """
    end = time.monotonic() + 60 * minutes
    store = Store(results)
    store.set_machine(commit=commit or _commit())
    logger.info("%s: %s", MACHINE, _run(store, MACHINE, _MACHINE_SECONDS, pocket))
    for name in names:
        left = end - time.monotonic()
        store.begin(name)
        if left < _GRACE:
            store.end(name, "not run: out of time", 0)
            write_text(results.with_suffix(".md"), render([store.read()]))
            continue
        began = time.monotonic()
        seconds = left - _GRACE / 2
        if name != names[-1]:
            seconds = min(LIMITS[name], seconds)
        status = _run(store, name, seconds, pocket)
        store.end(name, status, time.monotonic() - began)
        logger.info("%s: %s after %.0f s", name, status, time.monotonic() - began)
        write_text(results.with_suffix(".md"), render([store.read()]))


def _run(store: Store, name: str, seconds: float, pocket: bool) -> str:
    """Run one benchmark in its own process and return its final status."""
    logger.info("%s: at most %.0f s", name, seconds)
    command = [sys.executable, "-u", "-m", "benchmarks.worker", name, f"--results={store.path}"]
    # Imports do not count against `--seconds`. `--end` makes a worker with slow imports stop before it is killed.
    command += [f"--seconds={seconds}", f"--end={time.monotonic() + seconds + _GRACE / 2}"]
    if pocket:
        command.append("--pocket")
    # A killed benchmark may leave files of tens of gigabytes and child processes. Both are removed.
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as scratch:
        environment = os.environ | {"TMPDIR": scratch}
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = worker.wait(seconds + _GRACE)
        except subprocess.TimeoutExpired:
            return "ended: it exceeded its time limit"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    return "done" if code == 0 else f"failed: exit status {code}"


def _documents(results: Path) -> list[dict[str, Any]]:
    return [Store(path).read() for path in sorted(results.glob("*.json"))]


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=, changed"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"benchmarks to run: {', '.join(LIMITS)} (default: all); or report, memory or times"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10, help="time limit; cases that do not fit are not run")
    parser.add_argument("--pocket", action="store_true", help="use pocket sizes also on a large GPU")
    parser.add_argument("--commit", help="the measured commit, if this folder is no git repository")
    options = parser.parse_args()
    if options.names == ["report"]:
        for results in options.out.glob("*.json"):
            write_text(results.with_suffix(".md"), render([Store(results).read()]))
        write_text(PAGE, performance_page(options.out))
        return
    if options.names == ["memory"]:
        # Imported here because it loads the trainer and DeepSpeed, which the other commands do not need.
        from .memory import memory_page

        write_text(MEMORY_PAGE, memory_page(_documents(options.out)))
        return
    if options.names == ["times"]:
        from .times import times_page

        write_text(TIMES_PAGE, times_page(_documents(options.out)))
        return
    unknown = [name for name in options.names if name not in LIMITS]
    if unknown:
        choices = ", ".join([*LIMITS, "report", "memory", "times"])
        parser.error(f"there is no benchmark {', '.join(unknown)}; choose from {choices}")
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    results = options.out / f"{stamp}.json"
    measure(options.names or list(LIMITS), results.resolve(), options.minutes, options.pocket, options.commit)
    logger.info("results are in %s and %s", results, results.with_suffix(".md"))


if __name__ == "__main__":
    main()
