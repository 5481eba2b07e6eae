"""The `magicdistill` command. Each subcommand imports its dependencies only when it runs, to keep `--help` fast."""

import logging
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from magicdistill_core.errors import MagicDistillError

from .command_line import CommandLine
from .commands import comfyui, curation, data, evaluation, files, planning, sampling, training
from .console import LogHandler, show
from .pocket.cli import app as pocket_app
from .surroundings import complete_surroundings

_BAD_INPUT = 2

app = CommandLine(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil portrait image-to-video models into few-step generators, and sample from them.",
)
app.add_typer(curation.app, name="data")
app.add_typer(pocket_app, name="pocket")


@app.callback()
def setup(local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0) -> None:
    """Send log messages to stderr. Accepts --local_rank, which `deepspeed` passes, and uses LOCAL_RANK instead."""
    complete_surroundings()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogHandler()], force=True)
    for name in (__name__.partition(".")[0], "magicdistill_core"):
        logging.getLogger(name).setLevel(logging.INFO)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for all files that the demo writes.")]) -> None:
    """Distil the pocket teacher, export the generator and compare both. Takes a few minutes on a CPU."""
    from .folder_lock import folder_lock
    from .pocket.demo import demo as run

    with folder_lock(out, "magicdistill demo"):
        run(out)


# In the order in which `--help` lists them.
for subcommand in (
    training.train,
    planning.memory,
    planning.plan,
    data.prepare,
    data.encode_prompt,
    files.export,
    files.extract_lora,
    training.report,
    sampling.sample,
    files.inspect,
    comfyui.comfyui,
    comfyui.workflows,
):
    app.command(subcommand.__name__.replace("_", "-"))(subcommand)
app.command("eval")(evaluation.evaluate)


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
