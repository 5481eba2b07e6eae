"""Sweep the settings of distribution matching on the ring: `python -m benchmarks.ring_sweep --results F --table F`.

Three questions, with several seeds each:

- `grid`: what the weak weight, the fake branch's learning rate and Adam's epsilon do. Each weak weight has a control:
  DMD (weak weight 0) with the generator's learning rate times `1 - a_weak`.
- `collapse`: whether training breaks down with a slow fake score and tiny batches.
- `rivals`: what published additions to distribution matching give, on the ring with labels.

A cell is one method with all its seeds. Cells train together in stacks (`benchmarks.ring_stack`). The results file gets
each cell as soon as its stack is finished, and a later call keeps it. The table is written from the results file.
"""

import argparse
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .ring import ROOT, Method
from .ring_rivals import PhasedStack, Rival, RivalStack
from .ring_stack import SAMPLES, Stack, shared_settings
from .ring_table import table
from .ring_world import MODES, Network, centres, distance_to_data, learn_teacher, sample_data

logger = logging.getLogger(__name__)

WIDTH, CLASSES = 32, 4
# Small stacks are finished, and kept, sooner. Larger ones are hardly faster.
LARGEST_STACK = 28
A_WEAK = (0.25, 0.5, 0.75)
RATE = 5e-4


@dataclass(frozen=True)
class Plan:
    """How long and how often everything is trained and measured.

    Attributes:
        seeds: number of seeds of a cell.
        updates: generator updates of a training.
        every: updates between two measurements.
        teacher_updates: updates of the teacher.
        batch: samples of an update, except in the part `collapse`.
    """

    seeds: int = 4
    updates: int = 1500
    every: int = 50
    teacher_updates: int = 6000
    batch: int = 64


@dataclass(frozen=True)
class Cell:
    """A method that is trained with all seeds.

    Attributes:
        part: `grid`, `collapse` or `rivals`.
        name: the cell's name in its part.
        method: the method.
        phased: whether the training is that of Phased DMD.
    """

    part: str
    name: str
    method: Method
    phased: bool = False

    @property
    def key(self) -> str:
        return f"{self.part}: {self.name}"


def with_controls(part: str, name: str, method: Method) -> Iterator[Cell]:
    """Yield a cell for DMD, and for each weak weight one cell and its control."""
    yield Cell(part, f"{name}, dmd", replace(method, a_weak=0.0))
    for weight in A_WEAK:
        yield Cell(part, f"{name}, w2s {weight}", replace(method, a_weak=weight))
        yield Cell(part, f"{name}, control {weight}", replace(method, a_weak=0.0, student_rate=RATE * (1 - weight)))


def grid(plan: Plan) -> Iterator[Cell]:
    """Yield the cells of the part `grid`."""
    for epsilon, ratios in ((1e-8, (0.1, 1, 10, 33)), (1e-15, (1, 10, 33))):
        for ratio in ratios:
            method = Method(batch=plan.batch, student_rate=RATE, fake_rate=ratio * RATE, epsilon=epsilon)
            yield from with_controls("grid", f"epsilon {epsilon:g}, fake rate {ratio:g}", method)


def collapse() -> Iterator[Cell]:
    """Yield the cells of the part `collapse`."""
    for batch in (1, 2, 4):
        for ratio in (0.1, 1):
            method = Method(batch=batch, student_rate=RATE, fake_rate=ratio * RATE)
            yield from with_controls("collapse", f"batch {batch}, fake rate {ratio:g}", method)


def rivals(plan: Plan) -> Iterator[Cell]:
    """Yield the cells of the part `rivals`: first what the trainer has, then each rival as an addition to DMD."""
    base = Rival(batch=plan.batch, student_rate=RATE, fake_rate=10 * RATE, a_weak=0.0)
    methods = {
        "dmd": base,
        "w2s": replace(base, a_weak=0.25),
        "dmd, supervised": replace(base, supervision=0.25),
        "w2s, supervised": replace(base, a_weak=0.25, supervision=0.25),
    }
    for scale in (1.25, 1.5, 2.0):
        methods[f"guidance {scale}"] = replace(base, kind="guidance", strength=scale)
        methods[f"decoupled guidance {scale}"] = replace(base, kind="decoupled", strength=scale)
    for start, when in ((0.0, "from the start"), (0.5, "in the second half")):
        methods[f"data forcing (scores), {when}"] = replace(base, kind="forced_score", strength=0.5, start=start)
        methods[f"data forcing (x0), {when}"] = replace(base, kind="forced_x0", strength=0.5, start=start)
    for weight in (0.05, 1.0):
        methods[f"first step {weight:g}"] = replace(base, kind="first_step", strength=weight)
    for name, method in methods.items():
        yield Cell("rivals", name, method)
    yield Cell("rivals", "phased", base, phased=True)


def stack_of(cells: Sequence[Cell], plan: Plan, teacher: Network) -> Stack:
    """Return the trainings of all seeds of the cells, seeds of a cell next to each other."""
    seeds = [seed for _ in cells for seed in range(plan.seeds)]
    methods = [cell.method for cell in cells for _ in range(plan.seeds)]
    if cells[0].phased:
        return PhasedStack(methods, seeds, teacher, plan.updates)
    rival_methods = [method for method in methods if isinstance(method, Rival)]
    return RivalStack(rival_methods, seeds, teacher, plan.updates) if rival_methods else Stack(methods, seeds, teacher)


def train(cells: Sequence[Cell], plan: Plan, teacher: Network) -> dict[str, Any]:
    """Train cells in one stack and return their entries of the results, by key."""
    stack = stack_of(cells, plan, teacher)
    points, alignments = [stack.distances()], {}
    for update in range(1, plan.updates + 1):
        stack.round(update - 1)
        if update % plan.every == 0:
            points.append(stack.distances())
        if update in (plan.updates // 10, plan.updates) and not cells[0].phased:
            alignments[update] = {weight: stack.alignment(weight) for weight in A_WEAK}
    entries = {}
    for index, cell in enumerate(cells):
        copies = range(index * plan.seeds, (index + 1) * plan.seeds)
        entries[cell.key] = {
            "method": asdict(cell.method),
            "curves": [[round(point[copy], 5) for point in points] for copy in copies],
            "alignment": {
                str(update): {
                    str(weight): [[round(number, 4) for number in pairs[copy]] for copy in copies]
                    for weight, pairs in found.items()
                }
                for update, found in alignments.items()
            },
        }
    return entries


def stacks(cells: Sequence[Cell], seeds: int) -> Iterator[list[Cell]]:
    """Yield the cells in groups that train in one stack: with equal shared settings, and not too many of them."""
    groups: dict[tuple[bool, Method], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.phased, shared_settings(cell.method)), []).append(cell)
    largest = max(1, LARGEST_STACK // seeds)
    for members in groups.values():
        for first in range(0, len(members), largest):
            yield members[first : first + largest]


def read_results(path: Path, plan: Plan) -> dict[str, Any]:
    """Return the results of earlier calls, or empty ones.

    Raises:
        ValueError: if the file was made with another plan.
    """
    settings = {**asdict(plan), "width": WIDTH, "samples": SAMPLES}
    if not path.exists():
        return {"measure": "energy distance to the data", "plan": settings, "references": {}, "cells": {}}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if results.get("plan") != settings:
        raise ValueError(
            f"{path} was made with {results.get('plan')}, this version uses {settings}. Write to another file, or "
            f"delete this one to measure everything again."
        )
    return results


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results, with one line per cell, and replace the old file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({name: value for name, value in results.items() if name != "cells"}, indent=1)[:-2]
    cells = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in results["cells"].items())
    partial = path.with_suffix(".partial")
    partial.write_text(f'{head},\n "cells": {{\n{cells}\n }}\n}}\n', encoding="utf-8")
    os.replace(partial, path)


def references(teachers: Mapping[int, Network]) -> dict[str, float]:
    """Return the distances of the teachers at 4 and 28 steps, and of samples of the data themselves."""
    found = {}
    for classes, teacher in teachers.items():
        for steps in (4, 28):
            stack = Stack([Method(steps=steps)], [0], teacher)
            found[f"teacher{' with labels' if classes else ''}, {steps} steps"] = round(stack.distances()[0], 5)
    data = [distance_to_data(sample_data(SAMPLES, torch.Generator().manual_seed(s)), centres()) for s in range(MODES)]
    found["data, root mean square"] = round((sum(d**2 for d in data) / len(data)) ** 0.5, 5)
    return found


def sweep(path: Path, plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    """Train the cells that the results file does not have, and return all results.

    Args:
        path: the results file; it is written after each stack.
        plan: how long to train.
        cells: the cells of the sweep.

    Raises:
        ValueError: if the file was made with another plan, or has a cell of this name with another method.
    """
    results = read_results(path, plan)
    for cell in cells:
        entry = results["cells"].get(cell.key)
        if entry is not None and entry["method"] != json.loads(json.dumps(asdict(cell.method))):
            raise ValueError(
                f"{path} has the cell {cell.key!r} with {entry['method']}, this version has {asdict(cell.method)}. "
                f"Delete the cell from the file to measure it again."
            )
    missing = [cell for cell in cells if cell.key not in results["cells"]]
    if missing:
        teachers = {classes: learn_teacher(plan.teacher_updates, 0, WIDTH, classes) for classes in (0, CLASSES)}
        results["references"] = references(teachers)
        for group in stacks(missing, plan.seeds):
            logger.info("training %s", "; ".join(cell.key for cell in group))
            results["cells"] |= train(group, plan, teachers[CLASSES if group[0].part == "rivals" else 0])
            write_results(path, results)
    return results


def main() -> None:
    """Run the command line: train all cells and write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "ring_sweep.json")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "results" / "ring_sweep.md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    plan = Plan()
    results = sweep(arguments.results, plan, [*grid(plan), *rivals(plan), *collapse()])
    arguments.table.write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
