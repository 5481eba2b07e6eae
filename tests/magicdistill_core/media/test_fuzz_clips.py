"""Damaged clips of every kind end with frames or with our error. The reader never crashes, hangs or freezes motion.

`MAGICDISTILL_FUZZ_CLIPS=10000` reads as many mutations instead of a small sample.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.magicdistill_core.media.fuzz_clips import KINDS, clip, mutated

SAMPLE = 80
ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "tests.magicdistill_core.media.fuzz_clips"]


def findings(count: int) -> Iterator[str]:
    """Read mutations 0 to `count - 1` in processes of their own; yield what went wrong."""
    first = 0
    while first < count:
        done = subprocess.run(
            [*COMMAND, str(first), str(count - first)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        for line in lines:
            if line.startswith("{"):
                yield line
        numbers = [int(line) for line in lines if line.isdigit()]
        if done.returncode == 0:
            assert numbers == list(range(first, count))
            return
        assert numbers, done.stderr[-4000:]
        suffix, name, _ = mutated(numbers[-1], {suffix: clip(suffix) for suffix in KINDS})
        fault = f"ended with {done.returncode} (a negative number is a signal; -14: it hangs)"
        yield json.dumps({"mutation": numbers[-1], "kind": f"{suffix} {name}", "wrong": fault})
        first = numbers[-1] + 1


@pytest.mark.timeout(0 if "MAGICDISTILL_FUZZ_CLIPS" in os.environ else 300)
def test_damaged_clips_end_with_frames_or_with_our_error() -> None:
    count = int(os.environ.get("MAGICDISTILL_FUZZ_CLIPS", SAMPLE))
    wrong = list(findings(count))
    assert not wrong, f"{len(wrong)} of {count} mutations:\n" + "\n".join(wrong)


def test_mutations_are_always_the_same() -> None:
    """A finding names the number of its mutation, which must make the same file again."""
    clips = {suffix: bytes(range(256)) * 20 for suffix in KINDS}
    assert mutated(7, clips) == mutated(7, clips)
    assert len({mutated(number, clips)[2] for number in range(50)}) > 45
