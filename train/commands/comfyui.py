"""Commands about ComfyUI: `comfyui` and `workflows`."""

from pathlib import Path
from typing import Annotated

import typer

from ..console import show


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
    from ..comfyui.server import run_comfyui

    raise typer.Exit(run_comfyui(comfyui, directory, port))


def workflows(
    comfyui: Annotated[
        Path | None, typer.Option(envvar="COMFYUI_DIR", help="Folder of your ComfyUI; by default a copy is downloaded.")
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Also create the thumbnails; this takes minutes.")
    ] = False,
) -> None:
    """Write the example workflows and blueprints again, after a change of the nodes or of a definition."""
    from ..comfyui.workflows.write import BLUEPRINT_FOLDER, write_workflows

    written = write_workflows(comfyui, thumbnails)
    show(f"Wrote {len(written)} files into {written[0].parent} and {BLUEPRINT_FOLDER}")
