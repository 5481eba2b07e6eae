"""How a node tells the person at the canvas what it did and what deserves a second look."""

import logging

from comfy_api.latest import io, ui
from server import PromptServer

from ..magicdistill_core.recipe import Recipe

LOGGER = logging.getLogger(__name__)


def report(node: type[io.ComfyNode], text: str, warnings: list[str]) -> ui.PreviewText:
    """Say what a node did and what deserves a second look: in the log, under the node, and in the run's history."""
    LOGGER.info("MagicDistillation: %s", text)
    for warning in warnings:
        LOGGER.warning("MagicDistillation: %s", warning)
    said = "\n".join([text, *(f"Note: {warning}" for warning in warnings)])
    if node.hidden is not None and node.hidden.unique_id:
        PromptServer.instance.send_progress_text(said, node.hidden.unique_id)
    return ui.PreviewText(said)


def recipe_said(recipe: Recipe) -> str:
    """A recipe in a line."""
    return (
        f"{recipe.kind}: {recipe.steps} steps, shift {recipe.shift:g}, {recipe.sampler}, {recipe.width} x "
        f"{recipe.height}, {recipe.frames} frames, {recipe.fps:g} fps"
    )
