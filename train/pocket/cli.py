"""`magicdistill pocket`: everything that makes the pocket model, as resumable commands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from magicdistill_core.errors import ConfigError
from magicdistill_core.pocket.files import GENERATOR, TEACHER, VAE

app = typer.Typer(no_args_is_help=True, help="Make the pocket model: portraits, video autoencoder, teacher.")

Processes = Annotated[int, typer.Option(help="Processes that render.", min=1)]
# Where trainings put their files; not over the shipped ones, which docs/pocket.md says how to replace.
_MADE = Path("runs/pocket")

Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value; see docs/pocket.md.")]


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


def _counter(advance: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """A callback that counts its calls into a bar."""
    numbers = count(1)
    return lambda: advance(next(numbers), total)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for the rendered clips.")] = Path("runs/pocket/portraits"),
    processes: Processes = 1,
    settings: Settings = None,
) -> None:
    """Render pocket portraits into a folder of shards; run again to finish or to grow it."""
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
    data: Annotated[Path, typer.Option(help="Folder made by `render`.")] = Path("runs/pocket/portraits"),
    run: Annotated[Path, typer.Option(help="Run folder; an existing run is resumed.")] = Path("runs/pocket/vae"),
    out: Annotated[Path, typer.Option(help="The fp16 file to write.")] = _MADE / VAE.name,
    encoder: Annotated[list[str] | None, typer.Option(help="key=value for the encoder's stage, repeatable.")] = None,
    decoder: Annotated[list[str] | None, typer.Option(help="key=value for the decoder's stage, repeatable.")] = None,
) -> None:
    """Train the video autoencoder: first the encoder, then the decoder."""
    from ..config.reading import parse_settings
    from .vae import DecoderConfig, EncoderConfig, train_vae

    first = parse_settings(EncoderConfig, encoder or [])
    second = parse_settings(DecoderConfig, decoder or [])
    quality = train_vae(first, second, data, run, out)
    typer.echo(f"Held-out PSNR {quality:.2f} dB, written to {out}")


@app.command("train-teacher")
def train_teacher_command(
    latents: Annotated[Path, typer.Option(help="Folder for the encoded portraits.")] = Path("runs/pocket/latents"),
    clips: Annotated[int, typer.Option(help="Portraits to train on.", min=1)] = 4000,
    vae: Annotated[Path, typer.Option(help="Video autoencoder; by default the shipped one.")] = VAE,
    run: Annotated[Path, typer.Option(help="Run folder; an existing run is resumed.")] = Path("runs/pocket/teacher"),
    out: Annotated[Path, typer.Option(help="The bf16 file to write.")] = _MADE / TEACHER.name,
    start: Annotated[
        Path | None, typer.Option(help="A teacher to start from; by default random weights, next to the run.")
    ] = None,
    # A double block spends half of its weights on the prompt, of which there is none to speak of.
    double_blocks: Annotated[int, typer.Option(help="Double blocks of a network of random weights.", min=1)] = 1,
    single_blocks: Annotated[int, typer.Option(help="Single blocks of a network of random weights.", min=1)] = 9,
    processes: Processes = 1,
    portraits: Annotated[Path | None, typer.Option(help="Rendered portraits to take, made by `render`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of train/presets/pocket_teacher.yaml to change, as for train.")
    ] = None,
) -> None:
    """Encode portraits (as far as not yet done), then train the many-step teacher on them."""
    from .latents import write_latents
    from .teacher import network_shape, teacher_config, train_teacher

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
    typer.echo(f"Written to {out}")


@app.command("latents")
def latents_command(
    out: Annotated[Path, typer.Option(help="Dataset folder to make or continue.")] = Path("out/portraits"),
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
    generator: Annotated[Path, typer.Option(help="The distilled file.")] = GENERATOR,
    teacher: Annotated[Path, typer.Option(help="The teacher's file.")] = TEACHER,
    clips: Annotated[int, typer.Option(help="Start images, and as many clips of data.", min=8)] = 64,
    seeds: Annotated[int, typer.Option(help="Noise seeds.", min=1)] = 3,
) -> None:
    """Measure how near samples are to data: teacher at 28 and 4 steps, distilled at 4."""
    from .evaluate import Contender, evaluate

    contenders = [
        Contender("teacher, 28 steps", teacher, 28),
        Contender("teacher, 4 steps", teacher, 4),
        Contender("distilled, 4 steps", generator, 4),
    ]
    with _bar("Sampling") as advance:
        count_one = _counter(advance, len(contenders) * seeds)
        table = evaluate(contenders, clips, list(range(seeds)), out, count_one)
    typer.echo(table)


@app.command("methods")
def methods_command(
    out: Annotated[Path, typer.Option(help="JSON file to write; what it already holds of other methods is kept.")],
    dataset: Annotated[Path, typer.Option(help="Dataset made by `latents`.")] = Path("out/portraits"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs and their exports.")] = Path("runs/methods"),
    clips: Annotated[int, typer.Option(help="Held-out start images, and as many clips of data.", min=8)] = 48,
    seeds: Annotated[int, typer.Option(help="Noise seeds.", min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(help="A method; may be repeated. By default all.")] = None,
) -> None:
    """Train every method by its preset, export it, and measure what it did."""
    from .methods import TRIALS, compare_methods

    names = only or list(TRIALS)
    if unknown := sorted(set(names) - set(TRIALS)):
        raise ConfigError(f"There is no method {', '.join(unknown)} to compare. Known: {', '.join(TRIALS)}.")
    typer.echo(compare_methods(names, dataset, runs, out, clips, seeds, lambda text: typer.echo(text, err=True)))
