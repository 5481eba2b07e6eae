"""Report to the user what a node did, with notes about anything unexpected."""

import logging

from comfy_api.latest import io, ui
from server import PromptServer

from ..magicdistill_core.recipe import Recipe

LOGGER = logging.getLogger(__name__)


def report(node: type[io.ComfyNode], text: str, warnings: list[str]) -> ui.PreviewText:
    """Show a text and its warnings in the log and under the node; return them for the run's history.

    Args:
        node: the class of the node that is running.
        text: what the node did.
        warnings: notes about anything unexpected, each a sentence; an empty list for none.
    """
    LOGGER.info("MagicDistillation: %s", text)
    for warning in warnings:
        LOGGER.warning("MagicDistillation: %s", warning)
    lines = [*text.splitlines(), *(f"Note: {warning}" for warning in warnings)]
    # The page's modern design reads a text as Markdown, where two spaces end a line.
    full = "  \n".join(line if line.endswith((".", ":", "?")) else f"{line}." for line in lines)
    if node.hidden is not None and node.hidden.unique_id:
        PromptServer.instance.send_progress_text(full, node.hidden.unique_id)
    return ui.PreviewText(full)


def recipe_line(recipe: Recipe) -> str:
    """Return a recipe's kind, sampling settings and video size as one line."""
    loras = "".join(f", distilled with {lora.name} at {lora.weight:g}" for lora in recipe.teacher_loras)
    return (
        f"{recipe.kind}: {recipe.steps} steps, shift {recipe.shift:g}, {recipe.sampler}, {recipe.width} x "
        f"{recipe.height}, {recipe.frames} frames, {recipe.fps:g} fps{loras}"
    )


def recipe_notes(recipe: Recipe | None, source: str) -> list[str]:
    """Return a note if a recipe has fields that this version does not know; else an empty list.

    Args:
        recipe: the recipe; None for a file without one.
        source: the file's name.
    """
    if recipe is None or not recipe.unknown_fields:
        return []
    return [
        f"the recipe in {source} has fields that this version does not know and does not use: "
        f"{', '.join(recipe.unknown_fields)}. Update the pack if the result is not as expected."
    ]
