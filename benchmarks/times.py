"""Write `docs/time.md`: the computed time of training per preset, next to measured times, on any machine."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from train.config.training import TrainConfig
from train.data.dataset_index import sample_shapes
from train.distributed import prepare_environment
from train.engines.teacher import load_teacher
from train.memory.simulated import Simulation
from train.memory.work import WorkCount
from train.planning.gpus import REACHED, gpu_named
from train.planning.machines import GPUS_PER_NODE, NETWORK, Machines
from train.planning.plan import plan_of
from train.planning.times import seconds, times_of

from .cases.iteration import ONE_GPU, PRESET
from .harness import Row
from .memory import Files, rows_of_cases
from .runs import Document, together
from .sizes import FULL_SIZES, Clip
from .tables import number, table

MEASURED_ON = gpu_named("h200")
_GPU = gpu_named("h100")
# Below this length Python limits the speed, not the GPU. No rate is fitted to such clips.
_LONG = FULL_SIZES.clips[1:]

_INTRODUCTION = """# Time of a training

`python -m benchmarks times` writes this page; it needs no GPU. `magicdistill plan CONFIG --gpus N --gpu h100` computes
the same for any configuration, teacher and clip length, before you rent a GPU. It also tries single changes of the
settings and lists those that help:

    uv run magicdistill plan train/presets/hunyuan_i2v_w2s_4step_lora.yaml model.teacher=HUNYUAN \\
        --gpus 8 --gpu h100 --frames 129 --height 544 --width 960

The trainer's own code makes one update of each trained network. The tensors have shapes but no data. Four amounts of
work are counted: operations in matrix products, in attention, in its backward pass, and the bytes that everything else
reads and writes. Each is divided by a speed of the GPU from its data sheet and by the share of it that was reached on
an H200. A rollout stops at a random level; the times are those of the average.

Communication is computed from the bytes that ZeRO sends, divided by the speed of the connection ({link:g} GB/s inside a
machine of {node} H100, {network:g} GB/s between machines). It is added, as if nothing overlapped. It has not been
measured on several GPUs. The numbers do not include loading, writing checkpoints, decoding of validation samples, and
measurements of the signal.
"""
_CHECKED = """The times were measured on one H200 ([performance](performance.md)), most of them once. The shares below
were fitted to the rows of single calls, and the updates and iterations follow from them. `bare`: a network call alone.
The rows differ by {most:.0%} at most.
"""


def times_page(documents: Sequence[Document]) -> str:
    """Return the page: the time per preset, then computed next to measured times, and the fitted shares.

    Args:
        documents: the results of all benchmark runs.
    """
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        rows = rows_of_cases(files, computed)
        calls = list(measured_calls(files, documents))
        checks = [_checked(call.name, seconds(call.work, MEASURED_ON), call.seconds) for call in calls]
        checks += list(_updates(files, documents))
    shares = fitted(calls)
    lines = [
        _INTRODUCTION.format(link=_GPU.link, node=GPUS_PER_NODE, network=NETWORK),
        *table(rows),
        "",
        "## Computed and measured",
        "",
        _CHECKED.format(most=max(abs(float(row["computed / measured"]) - 1) for row in checks)),
        *table(checks),
        "",
        "| share of a speed that is reached | used | fitted to these rows |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {number(used)} | {number(fit)} |"
            for name, used, fit in zip(_SHARES, astuple(REACHED)[:4], shares, strict=True)
        ),
        "",
    ]
    return "\n".join(lines)


_SHARES = ("matrix products", "attention", "backward of attention", "everything else, of the memory's bandwidth")


def computed(config: TrainConfig, clip: Clip, gpus: int) -> Row:
    """Compute one row of the page.

    Args:
        config: the training.
        clip: the size of the training clips.
        gpus: the number of H100.
    """
    plan = plan_of(_simulated(config, clip), config, Machines(_GPU, gpus, NETWORK))
    return {
        "samples": plan.samples,
        "iteration s": plan.iteration,
        "communication s": plan.communication,
        "updates": config.updates,
        "hours": plan.hours,
        "GPU-hours": plan.gpu_hours,
        "GB of checkpoints": plan.disk / 1e9,
    }


@dataclass(frozen=True)
class Call:
    """A network call that was counted and measured.

    Attributes:
        name: what was called.
        work: its work.
        seconds: its measured time.
    """

    name: str
    work: WorkCount
    seconds: float


def measured_calls(files: Files, documents: Sequence[Document]) -> Iterator[Call]:
    """Yield the single network calls on long clips that a run measured.

    Args:
        files: teachers without data.
        documents: the results of all benchmark runs.
    """
    for clip in _LONG:
        simulation = _simulated(files.settings(PRESET.stem, *ONE_GPU), clip)
        forward = simulation.sampling_step
        plain = simulation.forward(lambda networks, condition: networks.score(condition, 0.0))
        fake = simulation.updates["fake"].work
        for benchmark, name, work in (
            ("forward", "", plain),
            ("iteration", ": forward without a branch", plain),
            ("iteration", ": bare forward", forward),
            # The shortest fake update is a rollout of one forward, and one forward and backward.
            ("iteration", ": bare forward and backward, checkpointed", fake + forward * -1),
        ):
            try:
                row = together(documents, benchmark, f"{clip.name}{name}")[0]
            except LookupError:
                continue
            yield Call(f"{clip.name}{name or ': forward'}", work, row["seconds"])


def fitted(calls: Sequence[Call]) -> tuple[float, ...]:
    """Return the shares of the GPU's speeds that fit measured calls best, by least squares of the relative errors.

    Args:
        calls: the calls.
    """
    flops, bandwidth = 1e12 * MEASURED_ON.tflops, 1e9 * MEASURED_ON.bandwidth
    ideal = np.array(
        [
            [
                call.work.products / flops,
                call.work.attention / flops,
                call.work.attention_backward / flops,
                call.work.moved / bandwidth,
            ]
            for call in calls
        ]
    )
    times = np.array([call.seconds for call in calls])
    found = least_squares(lambda logs: ideal @ np.exp(-logs) / times - 1, np.zeros(4))
    return tuple(float(value) for value in np.exp(found.x))


def _updates(files: Files, documents: Sequence[Document]) -> Iterator[Row]:
    """Yield the rows of updates and iterations, which no share was fitted to."""
    config = files.settings(PRESET.stem, *ONE_GPU)
    for clip in _LONG:
        simulation = _simulated(config, clip)
        names = {role: f"{clip.name}: {role} update, exit at the first node" for role in simulation.updates}
        iteration = f"{clip.name}: iteration, computed from one update of each"
        try:
            rows = together(documents, "iteration", *names.values(), iteration)
        except LookupError:
            continue
        for (role, name), row in zip(names.items(), rows, strict=False):
            yield _checked(name, seconds(simulation.updates[role].work, MEASURED_ON), row["seconds"])
        times = times_of(simulation, config, Machines(MEASURED_ON, 1, NETWORK))
        yield _checked(iteration, times.of(simulation.order), rows[-1]["seconds"])


def _checked(name: str, found: float, measured: float) -> Row:
    return {"case": name, "computed s": found, "measured s": measured, "computed / measured": found / measured}


def _simulated(config: TrainConfig, clip: Clip) -> Simulation:
    teacher = load_teacher(config, "meta")
    shapes = sample_shapes(teacher.checkpoint.architecture.name, clip.frames, clip.height, clip.width)
    return Simulation(config, teacher, shapes)
