"""Commands about a training: `train` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from ..console import command, show


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
    from ..config.reading import load_config
    from ..distributed import prepare_environment

    settings = load_config(config, overrides or [])
    prepare_environment()
    from ..distributed import is_main
    from ..run.trainer import train as run
    from ..run_folder import CONFIG_FILE

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


def report(run: Annotated[Path, typer.Argument(help="Folder of a training run.")]) -> None:
    """Write a report of a run: curves, samples, events, settings and next steps."""
    from ..watch.report import write_report

    show(f"Wrote {write_report(run)}")
