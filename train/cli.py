"""The `magicdistill` command. Each subcommand imports its dependencies only when it runs, to keep `--help` fast."""

import logging
import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from magicdistill_core.errors import ConfigError, MagicDistillError

from .command_line import CommandLine
from .console import LogHandler, command, show, show_facts
from .pocket.cli import app as pocket_app
from .surroundings import complete_surroundings

if TYPE_CHECKING:
    import torch

_BAD_INPUT = 2

app = CommandLine(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil portrait image-to-video models into few-step generators, and sample from them.",
)
app.add_typer(pocket_app, name="pocket")


class Format(StrEnum):
    """A format of `export`."""

    COMFYUI = "comfyui"
    INT8 = "int8"
    LORA = "lora"
    DIFFUSERS = "diffusers"


class Dtype(StrEnum):
    """A floating-point type."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


_STORED = {Dtype.FP32: "float32", Dtype.BF16: "bfloat16", Dtype.FP16: "float16"}

ImageEncoderOption = Annotated[
    Path | None, typer.Option(help="For Wan 2.1 only: the image_encoder folder (CLIP) of its diffusers release.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, ...; by default the first GPU, or the CPU if there is none."),
]
VaeOption = Annotated[
    Path | None,
    typer.Option("--vae", help="TAEHV file, or VAE folder of a diffusers release; by default the pocket VAE."),
]


@app.callback()
def setup(local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0) -> None:
    """Send log messages to stderr. Accepts --local_rank, which `deepspeed` passes, and uses LOCAL_RANK instead."""
    complete_surroundings()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogHandler()], force=True)
    for name in (__name__.partition(".")[0], "magicdistill_core"):
        logging.getLogger(name).setLevel(logging.INFO)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as one of train/presets.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace those of the file, such as zero.stage=3.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the configured run from its newest checkpoint.")
    ] = False,
) -> None:
    """Train a model. On N GPUs: torchrun --nproc_per_node N -m magicdistill_train train CONFIG ..."""
    from .config.reading import load_config
    from .distributed import prepare_environment

    settings = load_config(config, overrides or [])
    prepare_environment()
    from .distributed import is_main
    from .run.trainer import train as run
    from .run_folder import CONFIG_FILE

    outcome = run(settings, resume=resume)
    if not is_main():
        return
    if outcome.stopped_by:
        text = (
            f"Stopped by {outcome.stopped_by} at update {outcome.updates} of {settings.updates}. A checkpoint was "
            f"saved. Resume the run with: {command('train', settings.run / CONFIG_FILE, '--resume')}"
        )
    else:
        text = (
            f"The run {settings.run} is at update {outcome.updates}. Export its generator with: "
            f"{command('export', settings.run, '--out', 'generator.safetensors')}"
        )
    show(text)


@app.command()
def memory(
    config: Annotated[Path, typer.Argument(help="YAML configuration of a training.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace those of the file, such as zero.stage=3.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs, with one process each.")] = 1,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a sample, 4n + 1; by default the dataset's.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="Height of a sample in pixels; by default the dataset's.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Width of a sample in pixels; by default the dataset's.")
    ] = None,
) -> None:
    """Estimate the memory of a training per GPU, before it starts. Needs no GPU."""
    from .config.reading import load_config
    from .distributed import prepare_environment

    settings = load_config(config, overrides or [])
    prepare_environment()
    from .engines.teacher import load_teacher
    from .memory.training import memory_of, sample_of

    teacher = load_teacher(settings, "meta")
    shapes = sample_of(settings, teacher, frames, height, width)
    with Console(stderr=True).status("Simulating one update of each role without data"):
        found = memory_of(settings, teacher, shapes, gpus)
    show_facts(found.facts())


@app.command()
def prepare(
    videos: Annotated[Path, typer.Option(help="Folder of videos, including its subfolders, or one video.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to create or to extend.")],
    vae: VaeOption = None,
    image_encoder: ImageEncoderOption = None,
    frames: Annotated[int, typer.Option(help="Frames of a sample, 4n + 1.")] = 17,
    height: Annotated[int, typer.Option(help="Height in pixels, a multiple of 16.")] = 96,
    width: Annotated[int, typer.Option(help="Width in pixels, a multiple of 16.")] = 96,
    fps: Annotated[float, typer.Option(help="Frame rate of the samples; videos are resampled to it.")] = 24.0,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Distance between the first frames of two samples of a video; by default they do not overlap."
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored latents.")] = Dtype.FP16,
    device: DeviceOption = None,
) -> None:
    """Encode videos into a training dataset. Repeat the command to continue or to add videos."""
    from magicdistill_core.pocket.files import VAE

    from .data.prepare import prepare as run
    from .data.skipped import by_reason

    report = run(
        videos,
        out,
        vae or VAE,
        frames,
        height,
        width,
        fps,
        stride,
        _STORED[dtype],  # type: ignore[arg-type]
        _device(device),
        Console(stderr=True),
        image_encoder,
    )
    show(
        f"{report.added} samples added, {report.total} in {out}: {frames} frames of {width} x {height} at {fps:g} fps "
        f"each. {report.already_in} videos were already in the dataset, {len(report.skipped)} videos were skipped."
    )
    for reason in by_reason(report.skipped):
        show(f"Skipped: {reason}", style="yellow")
    if report.stopped_by:
        show(
            f"Stopped by {report.stopped_by}. Everything encoded so far is stored. Start the same command again to "
            f"continue."
        )
        raise typer.Exit(128 + signal.Signals[report.stopped_by])


@app.command("encode-prompt")
def encode_prompt(
    pipeline: Annotated[Path, typer.Argument(help="Folder of a diffusers HunyuanVideo or Wan pipeline.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write, for the setting model.null_prompt.")],
    prompt: Annotated[str, typer.Option(help="The prompt; by default the empty text, which is the null prompt.")] = "",
    device: DeviceOption = None,
) -> None:
    """Encode a prompt into a file. Training and sampling then need no text encoder."""
    from .data.prompts import encode_prompt as run

    encoded = run(pipeline, prompt, out, _device(device))
    _, tokens, width = encoded.text_states.shape
    show(f"Wrote {out}: {tokens} tokens of {width}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write; for diffusers a new folder.")],
    format: Annotated[
        Format,
        typer.Option(
            help="comfyui: one complete file; int8: half its size; lora: the generator LoRA; diffusers: a folder."
        ),
    ] = Format.COMFYUI,
    update: Annotated[
        int | None, typer.Option("--update", "--step", help="Update of the checkpoint; by default the newest.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Export the best checkpoint (see the setting checkpoint.measure).")
    ] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights; by default the type stored by the run.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Teacher file of a LoRA run, if it has moved.")] = None,
) -> None:
    """Export the generator of a run."""
    from .run_folder import checkpoint_folder, read_manifest
    from .tools.export import export_run
    from .tools.sample import DTYPES

    if best and update is not None:
        raise ConfigError("--best and --update select two checkpoints. Use only one of these options.")
    if best:
        update = read_manifest(checkpoint_folder(run, best=True)).update
    done = export_run(run, out, format.value, update, None if dtype is None else DTYPES[dtype.value], teacher)
    show(f"Wrote {out}{f': {done.summary()}' if done else ''}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a training run.")]) -> None:
    """Write a report of a run: curves, samples, events, settings and next steps."""
    from .watch.report import write_report

    show(f"Wrote {write_report(run)}")


@app.command()
def sample(
    file: Annotated[Path, typer.Argument(help="Model file of a teacher or a generator, or a generator LoRA.")],
    image: Annotated[Path, typer.Option(help="Start image.")],
    out: Annotated[Path, typer.Option(help="The .mp4 file to write.")],
    base: Annotated[Path | None, typer.Option(help="For a LoRA: the model file on which it was trained.")] = None,
    vae: VaeOption = None,
    image_encoder: ImageEncoderOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of the starting noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of model calls; by default the recipe's.")] = None,
    shift: Annotated[float | None, typer.Option(min=0.01, help="Timestep shift; by default the recipe's.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels; by default the recipe's.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels; by default the recipe's.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames, 4n + 1; by default the recipe's.")] = None,
    i2v_mode: Annotated[
        str | None,
        typer.Option(help="How the network receives the start image, if the file does not determine it (see inspect)."),
    ] = None,
    precision: Annotated[
        Dtype | None, typer.Option(help="Precision of the network; by default bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Sample a video from a start image, without ComfyUI."""
    from .tools.sample import sample_file

    console = Console(stderr=True)
    with console.status("Loading") as status:
        settings = sample_file(
            file,
            image,
            out,
            base=base,
            vae=vae,
            image_encoder=image_encoder,
            seed=seed,
            steps=steps,
            shift=shift,
            width=width,
            height=height,
            frames=frames,
            i2v_mode=i2v_mode,
            precision=None if precision is None else precision.value,
            device=_device(device),
            callback=lambda state: status.update(f"Step {state.step + 1} done (sigma {state.sigma:.3f})"),
        )
    show(
        f"Wrote {out}: {settings.frames} frames of {settings.width} x {settings.height} at {settings.fps:g} fps, "
        f"{settings.steps} steps, shift {settings.shift:g}, seed {settings.seed}"
    )


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A safetensors file, a .pt or .pth of tensors, a diffusers folder, or a dataset.")
    ],
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Also print the sha256 by which recipes identify the file.")
    ] = False,
) -> None:
    """Describe a weights file or a dataset, and print its recipe."""
    from .tools.inspect_file import inspect_file

    show_facts(inspect_file(file, sha256))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for all files that the demo writes.")]) -> None:
    """Distil the pocket teacher, export the generator and compare both. Takes a few minutes on a CPU."""
    from .folder_lock import folder_lock
    from .pocket.demo import demo as run

    with folder_lock(out, "magicdistill demo"):
        run(out)


@app.command()
def comfyui(
    comfyui: Annotated[
        Path | None, typer.Option(envvar="COMFYUI_DIR", help="Folder of your ComfyUI; by default a copy is downloaded.")
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", help="Base folder for models, inputs and outputs.")] = Path(
        "out/comfyui"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port of the server.")] = 8188,
) -> None:
    """Start ComfyUI with the node pack installed."""
    from .comfyui.server import run_comfyui

    raise typer.Exit(run_comfyui(comfyui, directory, port))


@app.command()
def workflows(
    comfyui: Annotated[
        Path | None, typer.Option(envvar="COMFYUI_DIR", help="Folder of your ComfyUI; by default a copy is downloaded.")
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Also create the thumbnails; this takes minutes.")
    ] = False,
) -> None:
    """Write the example workflows again, after a change of the nodes or of a workflow's definition."""
    from .comfyui.workflows.write import write_workflows

    written = write_workflows(comfyui, thumbnails)
    show(f"Wrote {len(written)} files into {written[0].parent}")


def _device(name: str | None) -> "torch.device":
    import torch

    from .distributed import available_device

    if name is None:
        return available_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MagicDistillError(
            f"The device {name!r} cannot be used ({reason}). Expected cpu, cuda, or cuda with a number, such as cuda:1."
        ) from error
    return device


def fail(error: MagicDistillError) -> NoReturn:
    """Print an error as one red paragraph on stderr, and exit with status 2."""
    _print_error(str(error))
    raise SystemExit(_BAD_INPUT)


def _print_error(text: str) -> None:
    # Under a launcher every process prints its own error.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        text = f"[process {os.environ.get('RANK')}] {text}"
    show(text, error=True, style="red")


def main() -> None:
    """Run the `magicdistill` command; print errors of this project without a traceback.

    `torchrun` prints the traceback of any other error: the first one of all processes, in its own report.
    """
    try:
        app()
    except MagicDistillError as error:
        fail(error)
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            raise
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
        _print_error(f"{type(error).__name__}: {error} (torchrun prints the traceback below.)")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
