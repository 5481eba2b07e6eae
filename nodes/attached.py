"""What a file says of itself travels with its MODEL, and what a node has to say reaches the person at the canvas."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from server import PromptServer

from ..magicdistill_core.families.base import Family, NullPrompt
from ..magicdistill_core.recipe import Recipe

LOGGER = logging.getLogger(__name__)
_KEY = "magicdistill"


@dataclass(frozen=True)
class Attached:
    """A loaded file: where it lies, its family, its recipe and its null prompt, each None if it carries none."""

    path: Path
    family: Family
    recipe: Recipe | None
    null_prompt: NullPrompt | None


def attach(model: ModelPatcher, attached: Attached) -> None:
    """Put `attached` on a MODEL; clones that later nodes make keep it."""
    model.set_attachments(_KEY, attached)


def attached_to(model: ModelPatcher) -> Attached | None:
    """What `attach` put on this MODEL or on one that it was cloned from; None after another loader."""
    return model.get_attachment(_KEY)


def file_stamp(folder: str, name: str) -> tuple[int, int]:
    """Size and time of a model file: a node that loads it runs again after it was exported anew."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        return (0, 0)
    status = os.stat(path)
    return (status.st_size, status.st_mtime_ns)


def report(node: type[io.ComfyNode], text: str, warnings: list[str]) -> ui.PreviewText:
    """Say what a node did and what deserves a second look: in the log, under the node, and in the run's history."""
    LOGGER.info("MagicDistillation: %s", text)
    for warning in warnings:
        LOGGER.warning("MagicDistillation: %s", warning)
    said = "\n".join([text, *(f"Note: {warning}" for warning in warnings)])
    if node.hidden is not None and node.hidden.unique_id:
        PromptServer.instance.send_progress_text(said, node.hidden.unique_id)
    return ui.PreviewText(said)
