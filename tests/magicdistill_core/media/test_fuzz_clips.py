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

from tests.magicdistill_core.media.fuzz_clips import KINDS, mutated

SAMPLE = 80
# Mutations that once ended with another error: PyAV raised an IndexError at the end of the file.
FOUND = (3084, 8595)
ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "tests.magicdistill_core.media.fuzz_clips"]


def findings(numbers: list[int]) -> Iterator[str]:
    """Read mutations in processes of their own; yield what went wrong."""
    while numbers:
        command = [*COMMAND, ",".join(map(str, numbers))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        yield from (line for line in lines if line.startswith("{"))
        read = [int(line) for line in lines if line.isdigit()]
        assert read, done.stderr[-4000:]
        assert read == numbers[: len(read)]
        numbers = numbers[len(read) :]
        if done.returncode:
            fault = f"ended with {done.returncode} (a negative number is a signal; -14: it hangs)"
            yield json.dumps({"mutation": read[-1], "wrong": fault})
        else:
            assert not numbers


@pytest.mark.timeout(0 if "MAGICDISTILL_FUZZ_CLIPS" in os.environ else 300)
def test_damaged_clips_end_with_frames_or_with_our_error() -> None:
    count = int(os.environ.get("MAGICDISTILL_FUZZ_CLIPS", SAMPLE))
    wrong = list(findings([*FOUND, *range(count)]))
    assert not wrong, f"{len(wrong)} findings:\n" + "\n".join(wrong)


def test_mutations_are_always_the_same() -> None:
    """A finding names the number of its mutation, which must make the same file again."""
    clips = {suffix: bytes(range(256)) * 20 for suffix in KINDS}
    assert mutated(7, clips) == mutated(7, clips)
    assert len({mutated(number, clips)[2] for number in range(50)}) > 45
