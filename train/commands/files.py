"""Commands about model files: `export`, `extract-lora` and `inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from magicdistill_core.errors import ConfigError

from ..console import show, show_facts
from .options import Dtype, Format


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
        bool, typer.Option("--best", help="Export the best checkpoint (see the setting validation.every).")
    ] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights; by default the type stored by the run.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Teacher file of a LoRA run, if it has moved.")] = None,
) -> None:
    """Export the generator of a run."""
    from ..run_folder import checkpoint_folder, read_manifest
    from ..tools.export import export_run
    from ..tools.sample import DTYPES

    if best and update is not None:
        raise ConfigError("--best and --update select two checkpoints. Use only one of these options.")
    if best:
        update = read_manifest(checkpoint_folder(run, best=True)).update
    done = export_run(run, out, format.value, update, None if dtype is None else DTYPES[dtype.value], teacher)
    show(f"Wrote {out}{f': {done.summary()}' if done else ''}")


def extract_lora(
    file: Annotated[Path, typer.Argument(help="Complete model file of a trained teacher or generator.")],
    base: Annotated[Path, typer.Option(help="Model file on which the LoRA will be used.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Largest rank of a matrix; a higher one is closer to FILE. 64 without --energy."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Share of the squared change that each matrix keeps, such as 0.99; instead of one rank."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset on whose samples the error of the velocities is measured.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the matrices; by default the type of the weights in FILE.")
    ] = None,
) -> None:
    """Extract a LoRA that turns the base into a trained model, and print how far it is off."""
    from ..tools.extract_lora import extract_lora as run
    from ..tools.sample import DTYPES

    if rank is None and energy is None:
        rank = 64
    chosen = None if dtype is None else DTYPES[dtype.value]
    done = run(file, base, out, rank, chosen, energy=energy, dataset=dataset)
    show(f"Wrote {out}: {done.summary()}")


def inspect(
    file: Annotated[
        Path, typer.Argument(help="A safetensors file, a .pt or .pth of tensors, a diffusers folder, or a dataset.")
    ],
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Also print the sha256 by which recipes identify the file.")
    ] = False,
) -> None:
    """Describe a weights file or a dataset, and print its recipe."""
    from ..tools.inspect_file import inspect_file

    show_facts(inspect_file(file, sha256))
