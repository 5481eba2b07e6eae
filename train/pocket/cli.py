"""``magicdistill pocket``: everything that makes the pocket model, as resumable commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from magicdistill_core.errors import ConfigError
from magicdistill_core.pocket.files import GENERATOR, TEACHER, VAE

from .settings import parse_settings

app = typer.Typer(no_args_is_help=True, help="Make the pocket model: portraits, video autoencoder, teacher.")

Processes = Annotated[int, typer.Option(help="Processes that render.", min=1)]
# Where trainings put their files; not over the shipped ones, which docs/pocket.md says how to replace.
_MADE = Path("runs/pocket")

Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value; see docs/pocket.md.")]


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int, float | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as bar:
        task = bar.add_task(title, total=None, note="")

        def advance(done: int, total: int, value: float | None = None) -> None:
            bar.update(task, completed=done, total=total, note="" if value is None else f"{value:.4f}")

        yield advance


def _counter(advance: Callable[[int, int, float | None], None], total: int) -> Callable[[], None]:
    """A callback that counts its calls into a bar."""
    numbers = count(1)
    return lambda: advance(next(numbers), total, None)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for the rendered clips.")] = Path("runs/pocket/portraits"),
    processes: Processes = 1,
    settings: Settings = None,
) -> None:
    """Render pocket portraits into a folder of shards; run again to finish or to grow it."""
    from .dataset import RenderConfig, render_folder

    with _bar("Rendering") as advance:
        render_folder(
            parse_settings(RenderConfig, settings or []),
            out,
            lambda done, total: advance(done, total, None),
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
    from .vae import DecoderConfig, EncoderConfig, train_vae

    first = parse_settings(EncoderConfig, encoder or [])
    second = parse_settings(DecoderConfig, decoder or [])
    with _bar("Training the autoencoder") as advance:
        quality = train_vae(first, second, data, run, out, advance)
    typer.echo(f"Held-out PSNR {quality:.2f} dB, written to {out}")


@app.command("train-teacher")
def train_teacher_command(
    latents: Annotated[Path, typer.Option(help="Folder for the encoded portraits.")] = Path("runs/pocket/latents"),
    clips: Annotated[int, typer.Option(help="Portraits to train on.", min=1)] = 4000,
    vae: Annotated[Path, typer.Option(help="Video autoencoder; by default the shipped one.")] = VAE,
    run: Annotated[Path, typer.Option(help="Run folder; an existing run is resumed.")] = Path("runs/pocket/teacher"),
    out: Annotated[Path, typer.Option(help="The bf16 file to write.")] = _MADE / TEACHER.name,
    start: Annotated[Path | None, typer.Option(help="A teacher to begin from, in place of random weights.")] = None,
    processes: Processes = 1,
    portraits: Annotated[Path | None, typer.Option(help="Rendered portraits to take, made by `render`.")] = None,
    settings: Settings = None,
) -> None:
    """Encode portraits (as far as not yet done), then train the many-step teacher on them."""
    from .latents import write_latents
    from .teacher import TeacherConfig, train_teacher

    config = parse_settings(TeacherConfig, settings or [])
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
    with _bar("Training the teacher") as advance:
        train_teacher(config, latents, vae, run, out, advance, start)
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
