"""What every benchmark measures with: cases that may fail alone, interleaved timing, peaks of memory."""

import gc
import logging
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from .sizes import Sizes, sizes_for

logger = logging.getLogger(__name__)

GB = 1e9
# What counts as a GPU on which 13B is measured, in bytes.
FULL_MEMORY = 100 * GB

Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Repeated timings of one variant, in the order in which they were taken."""

    seconds: tuple[float, ...]
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def maximum(self) -> float:
        return max(self.seconds)

    @property
    def spread(self) -> float:
        """The range of the timings as a part of their median."""
        return (self.maximum - self.minimum) / self.median

    def row(self) -> Row:
        """The timings as columns of a result: seconds (median), their extremes, spread and number; peak memory."""
        columns: Row = {
            "seconds": self.median,
            "seconds_min": self.minimum,
            "seconds_max": self.maximum,
            "spread": self.spread,
            "repeats": len(self.seconds),
        }
        if self.peak_bytes:
            columns["peak_gb"] = self.peak_bytes / GB
        return columns


@dataclass
class Case:
    """How one case went, once it is over."""

    failed: bool = False
    seconds: float = 0.0


class Bench:
    """One benchmark on one device.

    Args:
        sink: takes every row as soon as there is one.
        seconds: how long the benchmark may take; cases that would not fit are recorded as not run.
        clock: seconds since any moment.
        machine: what was measured of the machine before (`benchmarks.machine`).
    """

    def __init__(
        self,
        device: torch.device,
        full: bool,
        sink: Callable[[Row], None],
        seconds: float = float("inf"),
        clock: Callable[[], float] = time.perf_counter,
        machine: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = device
        self.full = full
        self.sizes: Sizes = sizes_for(full)
        self.machine: Mapping[str, Any] = machine or {}
        self._sink = sink
        self._clock = clock
        self._end = clock() + seconds

    @property
    def dtype(self) -> torch.dtype:
        """What networks compute in here: bf16 on a GPU, float32 on a CPU, which is slow at anything else."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def generator(self, seed: int = 0) -> torch.Generator:
        """A new generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def record(self, case: str, **values: Any) -> None:
        """Write a result: numbers and short texts by column."""
        self._sink({"case": case, **values})

    def seconds_left(self) -> float:
        """Until the benchmark's time is up."""
        return self._end - self._clock()

    def time_for(self, case: str, seconds: float) -> bool:
        """Whether a case of about so many seconds still fits; if not, that is recorded."""
        if self.seconds_left() >= seconds:
            return True
        self.record(case, error=f"not run: out of time (needs about {seconds:.0f} s)")
        return False

    @contextmanager
    def case(self, name: str) -> Iterator[Case]:
        """One case, whose failure is recorded and ends only itself; memory and its peak are clean before and after."""
        self.clean()
        began = self._clock()
        case = Case()
        try:
            yield case
        except Exception as error:
            case.failed = True
            logger.warning("%s failed", name, exc_info=error)
            self.record(name, error=describe(error))
            # The frames of the traceback hold the tensors of the case.
            traceback.clear_frames(error.__traceback__)
        finally:
            self.clean()
            case.seconds = self._clock() - began
            logger.info("%s: %.1f s", name, case.seconds)

    def compare(self, variants: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
        """Time several ways of doing a thing, one after another in every round, so that drift meets all alike.

        Args:
            variants: what to run, by name; results are dropped.
            repeats: timed rounds.
            warmup: rounds before them.
        """
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        peaks = dict.fromkeys(variants, 0)
        for number in range(warmup + repeats):
            for name, run in variants.items():
                self.reset_peak()
                self.synchronize()
                began = self._clock()
                run()
                self.synchronize()
                took = self._clock() - began
                if number >= warmup:
                    seconds[name].append(took)
                    peaks[name] = max(peaks[name], self.peak_bytes())
        return {name: Timing(tuple(taken), peaks[name]) for name, taken in seconds.items()}

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Free what nothing holds, and begin a new peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.reset_peak()

    def reset_peak(self) -> None:
        """Begin a new peak of device memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Most device memory allocated since the peak was reset; 0 without a GPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


def describe(error: BaseException) -> str:
    """An error in one line, short enough for a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


class HostMemory:
    """The peak of this process's memory while a block runs, sampled: its own pages, and mapped files with them.

    Mapped pages belong to the page cache: the system takes them back when it needs to. Own pages it cannot.
    """

    def __init__(self, every: float = 0.01) -> None:
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = _status()
        self.own_bytes, self.resident_bytes = self.before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._look()

    def _look(self) -> None:
        own, resident = _status()
        self.own_bytes, self.resident_bytes = max(self.own_bytes, own), max(self.resident_bytes, resident)

    def row(self) -> Row:
        """The peaks as columns of a result."""
        return {"host_peak_gb": self.own_bytes / GB, "host_peak_with_mapped_gb": self.resident_bytes / GB}


def _status() -> tuple[int, int]:
    """Own and resident bytes of this process; systems that do not tell them apart give the latter twice."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            fields[name] = int(value.split()[0]) * 1024
    resident = fields.get("VmRSS", 0)
    return fields.get("RssAnon", resident), resident
