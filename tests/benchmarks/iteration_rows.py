"""Script: measure updates and rounds of a tiny distillation, and print the rows and the network calls of each update.

It runs in its own process, because DeepSpeed changes the environment and the process group of the process that imports
it.
"""

import json
import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import iteration
from benchmarks.cases.iteration import build, growing, measure_rounds, measure_updates, restoring
from benchmarks.harness import Bench, Row
from benchmarks.sizes import Clip, Sizes
from magicdistill_core.families.hunyuan_video import NetworkShape
from tests.makers import hunyuan_shape
from train.distributed import init_distributed, prepare_environment

SHAPE = hunyuan_shape()
CLIP = Clip(5, 32, 32)
EXIT = 2
SIZES = Sizes(SHAPE, 3, Clip(5, 32, 32), Clip(5, 32, 64), Clip(9, 32, 64), Clip(13, 32, 64))


def main() -> None:
    prepare_environment()
    init_distributed()
    from benchmarks.w2s import FAKE, GENERATOR, Course, FixedExit, calls

    rows: list[Row] = []
    bench = Bench(torch.device("cpu"), False, rows.append)
    subject = build(bench, SHAPE, text_tokens=3)
    measure_updates(bench, subject, CLIP, repeats=2, warmup=1)
    measure_rounds(bench, subject, CLIP, repeats=2)
    restoring(bench, subject, CLIP)

    seen: list[bool] = []

    def count(module: nn.Module, arguments: tuple[object, ...]) -> None:
        seen.append(torch.is_grad_enabled())

    subject.transformer.register_forward_pre_hook(count)
    counted = {}
    for role in (FAKE, GENERATOR):
        seen.clear()
        Course(subject, CLIP, FixedExit(0, EXIT), bench.generator()).update(role)
        counted[role] = {"made": [seen.count(False), seen.count(True)], "expected": list(calls(role, EXIT))}
    course = Course(subject, CLIP, FixedExit(0, EXIT), bench.generator())
    seen.clear()
    course.round()
    made = [seen.count(False), seen.count(True)]
    seen.clear()
    before = {name: p.clone() for name, p in subject.transformer.named_parameters()}
    with course.held():
        course.bare_round()
    counted["round"] = {"made": made, "expected": [seen.count(False), seen.count(True)]}
    changed = [name for name, p in subject.transformer.named_parameters() if not torch.equal(p, before[name])]
    answer = {"rows": rows, "counted": counted, "changed_by_bare_calls": changed, "short_of_memory": short_of_memory()}
    sys.stdout.write(json.dumps(answer) + "\n")


def short_of_memory() -> dict[str, Any]:
    """Run `growing` while the longest clip runs out of memory in the middle of a backward.

    Returns:
        `rows`: the recorded rows. `alive`: how many earlier networks were still in memory at each build.
    """
    networks: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def fragile(bench: Bench, shape: NetworkShape, text_tokens: int) -> "iteration.Subject":
        alive.append(sum(network() is not None for network in networks))
        subject = build(bench, shape, text_tokens)
        frames: list[int] = []
        backwards: list[int] = []

        def note(module: nn.Module, arguments: tuple[object, ...], named: dict[str, Tensor]) -> None:
            frames.append(named["hidden_states"].shape[2])

        def fail(gradient: Tensor) -> None:
            backwards.append(frames[-1])
            # The first backward is a bare call, without an engine. Fail in the second.
            if frames[-1] == SIZES.longest.latent[2] and backwards.count(frames[-1]) > 1:
                raise torch.OutOfMemoryError("no memory")

        subject.transformer.register_forward_pre_hook(note, with_kwargs=True)
        branch = [p for name, p in subject.transformer.named_parameters() if "lora" in name and "fake" in name]
        # The last parameter that a backward reaches. ZeRO has already reduced the other gradients then.
        branch[0].register_hook(fail)
        networks.append(weakref.ref(subject.transformer))
        return subject

    rows: list[Row] = []
    bench = Bench(torch.device("cpu"), False, rows.append)
    bench.sizes = SIZES
    iteration.build = fragile
    growing(bench)
    return {"rows": rows, "alive": alive}


if __name__ == "__main__":
    main()
