"""`magicdistill pocket`: the commands that build and measure the pocket model. They can be stopped and continued."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from magicdistill_core.errors import ConfigError
from magicdistill_core.pocket.files import GENERATOR, TEACHER, VAE
from magicdistill_core.writable import check_output_file, check_output_folder

from ..command_line import CommandLine
from ..console import progress_bar, show

app = CommandLine(
    no_args_is_help=True, help="Build and measure the pocket model: portraits, video autoencoder, teacher, methods."
)

Processes = Annotated[int, typer.Option(help="Number of processes that render.", min=1)]
# Trainings write here and leave the shipped files unchanged. docs/pocket.md describes how to replace those.
_MADE = Path("runs/pocket")

Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value; see docs/pocket.md.")]


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar in the context, which is a function `(done, total)` that moves it."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


def _counter(advance: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """Return a callback that advances the bar by one per call."""
    numbers = count(1)
    return lambda: advance(next(numbers), total)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for the rendered clips.")] = Path("runs/pocket/portraits"),
    processes: Processes = 1,
    settings: Settings = None,
) -> None:
    """Render pocket portraits into a folder. Run it again to finish the folder or to add clips."""
    from ..config.reading import parse_settings
    from .dataset import RenderConfig, render_folder

    with _bar("Rendering") as advance:
        render_folder(
            parse_settings(RenderConfig, settings or []),
            out,
            advance,
            processes,
        )


@app.command("train-vae")
def train_vae_command(
    data: Annotated[Path, typer.Option(help="Folder with portraits, written by `render`.")] = Path(
        "runs/pocket/portraits"
    ),
    run: Annotated[Path, typer.Option(help="Run folder. An existing run is resumed.")] = Path("runs/pocket/vae"),
    out: Annotated[Path, typer.Option(help="Autoencoder file to write, in fp16.")] = _MADE / VAE.name,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Setting of the encoder stage as key=value. Repeatable.")
    ] = None,
    decoder: Annotated[
        list[str] | None, typer.Option(help="Setting of the decoder stage as key=value. Repeatable.")
    ] = None,
) -> None:
    """Train the video autoencoder: first the encoder, then the decoder."""
    from ..config.reading import parse_settings
    from .vae import DecoderConfig, EncoderConfig, train_vae

    first = parse_settings(EncoderConfig, encoder or [])
    second = parse_settings(DecoderConfig, decoder or [])
    quality = train_vae(first, second, data, run, out)
    show(f"Held-out PSNR {quality:.2f} dB, written to {out}")


@app.command("train-teacher")
def train_teacher_command(
    latents: Annotated[Path, typer.Option(help="Folder for the encoded portraits.")] = Path("runs/pocket/latents"),
    clips: Annotated[int, typer.Option(help="Portraits to train on.", min=1)] = 4000,
    vae: Annotated[Path, typer.Option(help="Video autoencoder file. Default: the shipped one.")] = VAE,
    run: Annotated[Path, typer.Option(help="Run folder. An existing run is resumed.")] = Path("runs/pocket/teacher"),
    out: Annotated[Path, typer.Option(help="Teacher file to write, in bf16.")] = _MADE / TEACHER.name,
    start: Annotated[
        Path | None,
        typer.Option(help="Teacher file to start from. Default: random weights, written next to the run folder."),
    ] = None,
    # A double block uses half of its weights for the prompt, and this prompt is only a fixed tensor.
    double_blocks: Annotated[
        int, typer.Option(help="Double blocks of a network that starts from random weights.", min=1)
    ] = 1,
    single_blocks: Annotated[
        int, typer.Option(help="Single blocks of a network that starts from random weights.", min=1)
    ] = 9,
    processes: Processes = 1,
    portraits: Annotated[
        Path | None, typer.Option(help="Folder with portraits, written by `render`. Default: render them now.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value settings that override train/presets/pocket_teacher.yaml.")
    ] = None,
) -> None:
    """Encode the portraits that are not yet encoded, then train the many-step teacher on them."""
    from .latents import write_latents
    from .teacher import network_shape, teacher_config, train_teacher

    check_output_folder(run)
    check_output_file(out)
    with _bar("Encoding") as advance:
        write_latents(
            latents,
            clips,
            first_seed=0,
            advance=_counter(advance, clips),
            vae_file=vae,
            processes=processes,
            portraits=portraits,
        )
    shape = network_shape(double_blocks, single_blocks)
    train_teacher(teacher_config(run, latents, vae, start, shape, settings or []), out)
    show(f"Written to {out}")


@app.command("latents")
def latents_command(
    out: Annotated[Path, typer.Option(help="Dataset folder to create or to continue.")] = Path("out/portraits"),
    clips: Annotated[int, typer.Option(help="Portraits to render and encode.", min=1)] = 512,
    processes: Processes = 1,
) -> None:
    """Render and encode portraits into a dataset for `magicdistill train`."""
    from .latents import write_latents

    with _bar("Portraits") as advance:
        write_latents(out, clips, advance=_counter(advance, clips), processes=processes)


@app.command("evaluate")
def evaluate_command(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    generator: Annotated[Path, typer.Option(help="Distilled model file.")] = GENERATOR,
    teacher: Annotated[Path, typer.Option(help="Teacher file.")] = TEACHER,
    clips: Annotated[
        int, typer.Option(help="Number of start images. The data has the same number of clips.", min=8)
    ] = 64,
    seeds: Annotated[int, typer.Option(help="Noise seeds.", min=1)] = 3,
) -> None:
    """Measure the distance of samples from data: teacher with 28 and 4 steps, distilled generator with 4 steps."""
    from .evaluate import Contender, evaluate

    check_output_file(out)
    contenders = [
        Contender("teacher, 28 steps", teacher, 28),
        Contender("teacher, 4 steps", teacher, 4),
        Contender("distilled, 4 steps", generator, 4),
    ]
    with _bar("Sampling") as advance:
        count_one = _counter(advance, len(contenders) * seeds)
        table = evaluate(contenders, clips, list(range(seeds)), out, count_one)
    show(table)


@app.command("methods")
def methods_command(
    out: Annotated[Path, typer.Option(help="JSON file to write. Its results of other methods are kept.")],
    dataset: Annotated[Path, typer.Option(help="Dataset, written by `latents`.")] = Path("out/portraits"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs and the exported files.")] = Path("runs/methods"),
    clips: Annotated[
        int, typer.Option(help="Number of held-out start images. The data has the same number of clips.", min=8)
    ] = 48,
    seeds: Annotated[int, typer.Option(help="Noise seeds.", min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Method to run. Repeatable. Default: all methods.")] = None,
) -> None:
    """Train every method with its preset, export the result, and measure it before and after training."""
    from .methods import TRIALS, compare_methods

    check_output_folder(runs)
    check_output_file(out)
    names = only or list(TRIALS)
    if unknown := sorted(set(names) - set(TRIALS)):
        raise ConfigError(f"There is no method {', '.join(unknown)} to compare. Known: {', '.join(TRIALS)}.")
    show(compare_methods(names, dataset, runs, out, clips, seeds, lambda text: show(text, error=True)))
