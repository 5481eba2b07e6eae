"""Run one benchmark in this process. A separate process keeps its crashes and its memory from the other benchmarks."""

import argparse
import importlib
import logging
import time
from pathlib import Path

import torch

from . import machine
from .harness import FULL_MEMORY, Bench
from .store import Store

MACHINE = "machine"


def make_bench(store: Store, name: str, seconds: float, pocket: bool) -> Bench:
    """Return a `Bench` on the GPU if there is one, at 13B sizes if the GPU is large enough."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    full = False
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.set_device(device)
        full = not pocket and torch.cuda.get_device_properties(device).total_memory >= FULL_MEMORY
    return Bench(device, full, lambda row: store.add(name, row), seconds, machine=store.read()["machine"])


def main() -> None:
    """Run the command line; `python -m benchmarks` starts this command once per benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="time limit, imports not counted")
    parser.add_argument("--end", type=float, required=True, help="time.monotonic() after which no new case starts")
    parser.add_argument("--pocket", action="store_true")
    options = parser.parse_args()
    store = Store(options.results)
    # Imports take long on a cold machine, so they do not count against the time limit.
    case = None if options.name == MACHINE else importlib.import_module(f"benchmarks.cases.{options.name}")
    seconds = min(options.seconds, options.end - time.monotonic())
    bench = make_bench(store, options.name, seconds, options.pocket)
    if case is None:
        store.set_machine(**machine.facts(bench))
        store.set_machine(**machine.limits(bench))
    else:
        case.run(bench)


if __name__ == "__main__":
    main()
