"""Timing in turns and statistics with a fake clock; a failed case ends only itself."""

import pytest
import torch

from benchmarks.harness import Bench, HostMemory, Row, Timing


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make(clock: FakeClock, seconds: float = 1000.0) -> tuple[Bench, list[Row]]:
    rows: list[Row] = []
    return Bench(torch.device("cpu"), False, rows.append, seconds, clock), rows


def test_compare_interleaves_and_drops_the_warmup(clock: FakeClock) -> None:
    bench, _ = make(clock)
    calls: list[str] = []
    costs = {"a": iter([50.0, 1.0, 3.0, 2.0]), "b": iter([60.0, 4.0, 4.0, 5.0])}

    def variant(name: str) -> None:
        calls.append(name)
        clock.now += next(costs[name])

    timings = bench.compare({"a": lambda: variant("a"), "b": lambda: variant("b")}, repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert timings["a"].seconds == (1.0, 3.0, 2.0)
    assert timings["b"].median == 4.0


def test_statistics_of_a_timing() -> None:
    timing = Timing((1.0, 4.0, 2.0, 2.0), peak_bytes=3_000_000_000)
    assert timing.row() == {
        "seconds": 2.0,
        "seconds_min": 1.0,
        "seconds_max": 4.0,
        "spread": 1.5,
        "repeats": 4,
        "peak_gb": 3.0,
    }


def test_running_out_of_memory_keeps_the_other_rows(clock: FakeClock) -> None:
    bench, rows = make(clock)
    with bench.case("first"):
        bench.record("first", seconds=1.0)
    with bench.case("second"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 300 GiB")
    with bench.case("third"):
        bench.record("third", seconds=3.0)
    assert rows == [
        {"case": "first", "seconds": 1.0},
        {"case": "second", "error": "out of memory"},
        {"case": "third", "seconds": 3.0},
    ]


def test_a_failed_case_lets_go_of_its_tensors(clock: FakeClock) -> None:
    import weakref

    bench, rows = make(clock)
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        tensor = torch.zeros(8)
        held.append(weakref.ref(tensor))
        raise RuntimeError("no\n  such kernel")

    with bench.case("broken"):
        work()
    assert rows == [{"case": "broken", "error": "RuntimeError: no such kernel"}]
    assert held[0]() is None


def test_an_interrupt_is_no_failed_case(clock: FakeClock) -> None:
    bench, rows = make(clock)
    with pytest.raises(KeyboardInterrupt), bench.case("interrupted"):
        raise KeyboardInterrupt
    assert rows == []


def test_a_case_that_would_not_fit_is_recorded(clock: FakeClock) -> None:
    bench, rows = make(clock, seconds=10.0)
    assert bench.time_for("short", 9.0)
    clock.now = 5.0
    assert not bench.time_for("long", 9.0)
    assert rows == [{"case": "long", "error": "not run: out of time (needs about 9 s)"}]


def test_host_memory_sees_a_peak_that_is_over() -> None:
    with HostMemory(every=0.001) as memory:
        block = torch.ones(100_000_000, dtype=torch.uint8)
        block.sum()
        import time

        time.sleep(0.05)
        del block
    assert memory.own_bytes - memory.before[0] > 90_000_000
