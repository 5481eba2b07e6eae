"""`magicdistill pocket`: the commands that build and measure the pocket model. They can be stopped and continued."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from magicdistill_core.errors import ConfigError
from magicdistill_core.pocket.files import CAPTIONED_4STEP_LORA, CAPTIONED_LORA, FOUR_STEP_LORA, READER, TEACHER, VAE
from magicdistill_core.writable import check_output_file, check_output_folder

from ..command_line import CommandLine
from ..console import progress_bar, show
from .tables.commands import add_commands

app = CommandLine(
    no_args_is_help=True, help="Build and measure the pocket model: portraits, video autoencoder, teacher, methods."
)
add_commands(app)

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
    start: Annotated[Path | None, typer.Option(help="Autoencoder to fine-tune instead.")] = None,
    tuning: Annotated[
        list[str] | None, typer.Option(help="Setting of the fine-tuning as key=value. Repeatable.")
    ] = None,
) -> None:
    """Train the video autoencoder: first the encoder, then the decoder. With --start, fine-tune an autoencoder."""
    from ..config.reading import parse_settings
    from .vae import DecoderConfig, EncoderConfig, train_vae
    from .vae_tuning import TuningConfig, tune_vae

    if start is not None:
        if encoder or decoder:
            raise ConfigError("--encoder and --decoder are settings of a new training. Use --tuning with --start.")
        quality = tune_vae(parse_settings(TuningConfig, tuning or []), start, data, run, out)
        show(f"Held-out PSNR {quality:.2f} dB, written to {out}")
        return
    if tuning:
        raise ConfigError("--tuning is for the fine-tuning of an autoencoder. Name that autoencoder with --start.")
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
    heads: Annotated[
        int,
        typer.Option(help="Attention heads, each of width 128, of a network that starts from random weights.", min=1),
    ] = 2,
    # A double block uses half of its weights for the prompt, and this prompt is only a fixed tensor.
    double_blocks: Annotated[
        int, typer.Option(help="Double blocks of a network that starts from random weights.", min=1)
    ] = 1,
    single_blocks: Annotated[
        int, typer.Option(help="Single blocks of a network that starts from random weights.", min=1)
    ] = 4,
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
    shape = network_shape(heads, double_blocks, single_blocks)
    train_teacher(teacher_config(run, latents, vae, start, shape, settings or []), out)
    show(f"Written to {out}")


@app.command("latents")
def latents_command(
    out: Annotated[Path, typer.Option(help="Dataset folder to create or to continue.")] = Path("out/portraits"),
    clips: Annotated[int, typer.Option(help="Portraits to render and encode.", min=1)] = 512,
    captions: Annotated[
        bool,
        typer.Option(
            "--captions", help="Each portrait follows one of 12 captions, such as 'turns left, speaks, blinks'."
        ),
    ] = False,
    portraits: Annotated[
        Path | None, typer.Option(help="Folder with portraits, written by `render`. Default: render them now.")
    ] = None,
    vae: Annotated[Path, typer.Option(help="Video autoencoder file. Default: the shipped one.")] = VAE,
    processes: Processes = 1,
) -> None:
    """Render and encode portraits into a dataset for `magicdistill train`. Run it again to add those of a folder."""
    from .latents import write_latents

    if captions and portraits is not None:
        raise ConfigError(
            f"The portraits in {portraits} follow no captions. Leave out --portraits to render others, or --captions."
        )
    with _bar("Portraits") as advance:
        write_latents(
            out,
            clips,
            advance=_counter(advance, clips),
            vae_file=vae,
            processes=processes,
            portraits=portraits,
            captions=captions,
        )


@app.command("evaluate")
def evaluate_command(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model file or generator LoRA to measure with the steps of its recipe, as FILE or NAME=FILE. "
            "Repeatable. Default: the shipped generator."
        ),
    ] = None,
    teacher: Annotated[Path, typer.Option(help="Teacher file; also the base of models that are LoRAs.")] = TEACHER,
    steps: Annotated[
        list[int] | None, typer.Option(help="Number of steps of the teacher. Repeatable. Default: 28, 8, 4 and 1.")
    ] = None,
    vae: Annotated[Path, typer.Option(help="Video autoencoder file of the teacher.")] = VAE,
    reader: Annotated[
        Path | None,
        typer.Option(help="Reader file. Default: the shipped one; without it, faces are not measured."),
    ] = None,
    clips: Annotated[int, typer.Option(help="Number of held-out start images.", min=8)] = 96,
    seeds: Annotated[int, typer.Option(help="Samples of each start image.", min=2)] = 4,
    processes: Processes = 1,
) -> None:
    """Measure models on held-out portraits: energy scores, faces and motion, compared with the teacher."""
    from .evaluate import evaluate
    from .measuring.contenders import baselines_of, teacher_contenders, trained_contender

    check_output_file(out)
    teachers = teacher_contenders(teacher, list(dict.fromkeys(steps or (28, 8, 4, 1))))
    contenders = [*teachers, *(trained_contender(text, teacher) for text in model or [str(FOUR_STEP_LORA)])]
    if reader is None and READER.is_file():
        reader = READER
    elif reader is None:
        show(f"There is no reader at {READER}, so faces are not measured. Train one with `train-reader`.", error=True)
    show(evaluate(contenders, baselines_of(teachers), clips, seeds, out, vae, reader, processes, _bar))


@app.command("methods")
def methods_command(
    out: Annotated[Path, typer.Option(help="JSON file to write. Its results of other methods are kept.")],
    dataset: Annotated[Path, typer.Option(help="Dataset, written by `latents`.")] = Path("out/portraits"),
    runs: Annotated[Path, typer.Option(help="Folder for the runs and the exported files.")] = Path("runs/methods"),
    clips: Annotated[int, typer.Option(help="Number of held-out clips.", min=2)] = 96,
    only: Annotated[list[str] | None, typer.Option(help="Method to run. Repeatable. Default: all of them.")] = None,
) -> None:
    """Train the methods that make no few-step generator (cfg, sft), and measure each before and after training."""
    from .methods import TRIALS, compare_methods

    check_output_folder(runs)
    check_output_file(out)
    names = only or list(TRIALS)
    if unknown := sorted(set(names) - set(TRIALS)):
        raise ConfigError(f"There is no method {', '.join(unknown)} to compare. Known: {', '.join(TRIALS)}.")
    show(compare_methods(names, dataset, runs, out, clips, lambda text: show(text, error=True)))


@app.command("train-reader")
def train_reader_command(
    vae: Annotated[Path, typer.Option(help="Video autoencoder through which the reader will see frames.")] = VAE,
    run: Annotated[Path, typer.Option(help="Run folder. An existing run is resumed.")] = Path("runs/pocket/reader"),
    out: Annotated[Path, typer.Option(help="Reader file to write, in fp16.")] = _MADE / READER.name,
    settings: Settings = None,
) -> None:
    """Train the reader, a small network that reads pose, gaze, mouth, identity and defects from single frames."""
    from ..config.reading import parse_settings
    from .measuring.reader.training import ReaderConfig, train_reader

    with _bar("Examples") as advance:
        found = train_reader(parse_settings(ReaderConfig, settings or []), vae, run, out, advance)
    show(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    show(f"Written to {out}")


@app.command("check-reader")
def check_reader_command(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    reader: Annotated[Path, typer.Option(help="Reader file. Default: the shipped one.")] = READER,
    vae: Annotated[Path, typer.Option(help="Video autoencoder through which the reader sees frames.")] = VAE,
    people: Annotated[int, typer.Option(help="Number of held-out people.", min=8)] = 96,
) -> None:
    """Measure the reader's errors on held-out people, its false alarms and detections, and the two-sample test."""
    from .measuring.check_reader import check_reader

    check_output_file(out)
    show(check_reader(reader, vae, people, out, _bar))


@app.command("check-captions")
def check_captions_command(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model file or LoRA with captions, as FILE or NAME=FILE, sampled with the steps of its recipe. "
            "Repeatable. Default: both shipped LoRAs."
        ),
    ] = None,
    base: Annotated[Path, typer.Option(help="Model file that the LoRAs belong to.")] = TEACHER,
    vae: Annotated[Path, typer.Option(help="Video autoencoder file of the models.")] = VAE,
    reader: Annotated[Path, typer.Option(help="Reader file. Default: the shipped one.")] = READER,
    clips: Annotated[int, typer.Option(help="Number of held-out start images for each of the 12 captions.", min=2)] = 8,
    processes: Processes = 1,
) -> None:
    """Measure how often clips do what their captions say, on held-out portraits."""
    from .check_captions import check_captions, load_captioned
    from .measuring.contenders import named_file

    check_output_file(out)
    files = map(named_file, model or map(str, (CAPTIONED_LORA, CAPTIONED_4STEP_LORA)))
    models = [load_captioned(name, file, base) for name, file in files]
    show(check_captions(models, clips, out, vae, reader, processes, _bar))
