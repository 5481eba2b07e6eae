"""Commands that compute what a training will take: `memory` and `plan`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..console import show, show_facts
from ..planning.machines import NETWORK

_Config = Annotated[Path, typer.Argument(help="YAML configuration of a training.")]
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that replace those of the file, such as zero.stage=3.")
]
_Gpus = Annotated[int, typer.Option(min=1, help="Number of GPUs, with one process each.")]
_Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a sample, 4n + 1; by default the dataset's.")]
_Height = Annotated[int | None, typer.Option(min=1, help="Height of a sample in pixels; by default the dataset's.")]
_Width = Annotated[int | None, typer.Option(min=1, help="Width of a sample in pixels; by default the dataset's.")]


def memory(
    config: _Config,
    overrides: _Overrides = None,
    gpus: _Gpus = 1,
    frames: _Frames = None,
    height: _Height = None,
    width: _Width = None,
) -> None:
    """Estimate the memory of a training per GPU, before it starts. Needs no GPU."""
    from ..config.reading import load_config
    from ..distributed import prepare_environment

    settings = load_config(config, overrides or [])
    prepare_environment()
    from ..engines.teacher import load_teacher
    from ..memory.training import caption_tokens, memory_of, sample_of

    teacher = load_teacher(settings, "meta")
    shapes = sample_of(settings, teacher, frames, height, width)
    with Console(stderr=True).status("Simulating one update of each role without data"):
        found = memory_of(settings, teacher, shapes, gpus, caption_tokens(settings))
    show_facts(found.facts())


def plan(
    config: _Config,
    overrides: _Overrides = None,
    gpus: _Gpus = 1,
    gpu: Annotated[
        str, typer.Option(help="Kind of GPU, such as h100, h200 or a100; another name with the three numbers below.")
    ] = "h100",
    frames: _Frames = None,
    height: _Height = None,
    width: _Width = None,
    memory: Annotated[float | None, typer.Option(help="GB of a GPU's memory.")] = None,
    tflops: Annotated[float | None, typer.Option(help="A GPU's TFLOP/s in bf16, of dense matrices.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="GB/s of a GPU's memory.")] = None,
    network: Annotated[
        float, typer.Option(min=0.001, help="GB/s that a GPU can send to another machine, for more than 8 GPUs.")
    ] = NETWORK,
) -> None:
    """Estimate memory, time and disk of a training before it starts, and which settings make it cheaper."""
    from ..config.reading import load_config
    from ..distributed import prepare_environment
    from ..planning.gpus import gpu_named
    from ..planning.machines import Machines

    settings = load_config(config, overrides or [])
    machines = Machines(gpu_named(gpu, memory, tflops, bandwidth), gpus, network)
    prepare_environment()
    from ..planning.changes import changes, with_settings
    from ..planning.plan import Clips, plan_of, simulate

    clips = Clips(frames, height, width)
    console = Console(stderr=True)
    with console.status("Simulating one update of each role without data"):
        simulation = simulate(settings, clips, gpus)
    show_facts(plan_of(simulation, settings, machines).facts())
    with console.status("Computing changes of the settings"):
        found = changes(
            lambda further: load_config(config, with_settings(overrides or [], further)),
            lambda changed: simulate(changed, clips, gpus),
            simulation,
            machines,
        )
    if not found:
        show("No single change of the settings makes this training fit or takes less time.")
        return
    show("Changes that help, the best first:")
    show_facts({change.settings: change.text() for change in found})
