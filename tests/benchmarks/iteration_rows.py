"""Script: measure updates and rounds of a tiny distillation; prints rows, and the network calls of each update.

DeepSpeed takes the environment and the process group of the process it is imported into, so it gets one of its own.
"""

import json
import sys

import torch
from torch import nn

from benchmarks.cases.iteration import build, measure_rounds, measure_updates
from benchmarks.harness import Bench, Row
from benchmarks.sizes import Clip
from magicdistill_core.families.hunyuan_video import NetworkShape
from train.distributed import init_distributed, prepare_environment

SHAPE = NetworkShape(33, 128, 1, 1, 1, 16, 768, False)
CLIP = Clip(5, 32, 32)
EXIT = 2


def main() -> None:
    prepare_environment()
    init_distributed()
    from benchmarks.w2s import FAKE, GENERATOR, Course, FixedExit, calls

    rows: list[Row] = []
    bench = Bench(torch.device("cpu"), False, rows.append)
    subject = build(bench, SHAPE, text_tokens=3)
    measure_updates(bench, subject, CLIP, repeats=2, warmup=1)
    measure_rounds(bench, subject, CLIP, repeats=2)

    seen: list[bool] = []

    def count(module: nn.Module, arguments: tuple[object, ...]) -> None:
        seen.append(torch.is_grad_enabled())

    subject.transformer.register_forward_pre_hook(count)
    counted = {}
    for player in (FAKE, GENERATOR):
        seen.clear()
        Course(subject, CLIP, FixedExit(0, EXIT), bench.generator()).update(player)
        counted[player] = {"made": [seen.count(False), seen.count(True)], "expected": list(calls(player, EXIT))}
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
    sys.stdout.write(json.dumps({"rows": rows, "counted": counted, "changed_by_bare_calls": changed}) + "\n")


if __name__ == "__main__":
    main()
