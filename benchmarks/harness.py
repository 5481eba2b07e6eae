"""Tools of every benchmark: cases that fail alone, timing of variants in turns, and peaks of memory."""

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
# Smallest memory, in bytes, of a GPU that measures 13B sizes.
FULL_MEMORY = 100 * GB

Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Repeated timings of one variant.

    Attributes:
        seconds: the duration of each repeat, in order.
        peak_bytes: the largest device memory of all repeats; 0 without a GPU.
    """

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
        """The range of the timings divided by their median."""
        return (self.maximum - self.minimum) / self.median

    def row(self) -> Row:
        """Return the columns of a result: median, extremes, spread and number of the timings, and the peak memory."""
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
    """The outcome of one case; set when the case has ended."""

    failed: bool = False
    seconds: float = 0.0


class Bench:
    """One benchmark on one device.

    Args:
        device: the device that is measured.
        full: measure 13B sizes; otherwise pocket sizes.
        sink: is called with every row as soon as it is measured.
        seconds: time limit; cases that do not fit are recorded as not run.
        clock: returns seconds since a fixed moment.
        machine: the description and plain speed of the machine (`benchmarks.machine`).
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
        """The dtype of the networks: bf16 on a GPU; float32 on a CPU, because other dtypes are slow there."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a new random generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def record(self, case: str, **values: Any) -> None:
        """Write one row: a case, and numbers and short texts by column."""
        self._sink({"case": case, **values})

    def seconds_left(self) -> float:
        """Return the seconds until the time limit."""
        return self._end - self._clock()

    def time_for(self, case: str, seconds: float) -> bool:
        """Return whether a case of about `seconds` still fits into the time limit; if not, record it as not run."""
        if self.seconds_left() >= seconds:
            return True
        self.record(case, error=f"not run: out of time (needs about {seconds:.0f} s)")
        return False

    @contextmanager
    def case(self, name: str) -> Iterator[Case]:
        """Run the block as one case. An exception is recorded as an error row and ends only this case.

        Unused memory is freed and the peak is reset before and after.
        """
        self.clean()
        began = self._clock()
        case = Case()
        try:
            yield case
        except Exception as error:
            case.failed = True
            logger.warning("%s failed", name, exc_info=error)
            self.record(name, error=describe(error))
            # The traceback's frames hold references to the case's tensors, which could not be freed otherwise.
            traceback.clear_frames(error.__traceback__)
        finally:
            self.clean()
            case.seconds = self._clock() - began
            logger.info("%s: %.1f s", name, case.seconds)

    def compare(self, variants: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
        """Time several variants in turns: every round runs each of them once.

        A slow change of the machine's speed then affects all variants equally.

        Args:
            variants: the functions to time, by name; their results are dropped.
            repeats: number of timed rounds.
            warmup: number of rounds before them that are not timed.

        Returns:
            The timing of each variant, by name.
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
        """Wait until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Free unused memory and reset the peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.reset_peak()

    def reset_peak(self) -> None:
        """Reset the peak of device memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Return the most device memory allocated since the last reset, in bytes; 0 without a GPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


def describe(error: BaseException) -> str:
    """Return an error as one line, short enough for a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


class HostMemory:
    """Record the peak of this process's memory while a block runs, by sampling.

    Two peaks are recorded: the process's own pages, and its own pages plus the pages of mapped files. Mapped pages
    belong to the page cache: the system can free them when it needs memory. It cannot free own pages.

    Args:
        every: seconds between two samples.
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
        """Return the columns of a result: both peaks in GB."""
        return {"host_peak_gb": self.own_bytes / GB, "host_peak_with_mapped_gb": self.resident_bytes / GB}


def _status() -> tuple[int, int]:
    """Return the own and the resident bytes of this process.

    Both numbers are equal on systems that report only resident bytes.
    """
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            fields[name] = int(value.split()[0]) * 1024
    resident = fields.get("VmRSS", 0)
    return fields.get("RssAnon", resident), resident
