"""The prompt template of a CONDITIONING and of a MODEL: how the text, with or without the start image, was encoded."""

from typing import cast

from comfy.model_patcher import ModelPatcher

from ..magicdistill_core.families import wan
from ..magicdistill_core.prompt_templates import TITLES, WAN, PromptTemplate, i2v_template, needs_image
from .attachments import assumed_family, attached_to

_KEY = "magicdistill_prompt_template"


def marked(template: PromptTemplate) -> dict[str, object]:
    """Return the entry of a CONDITIONING that names its template."""
    return {_KEY: template}


def template_for(model: ModelPatcher) -> tuple[PromptTemplate, bool]:
    """Return the template that a MODEL was trained with, and whether that is only assumed.

    Args:
        model: the MODEL. The recipe of its file states the template; else that of its family's release is assumed.
    """
    attached, family = attached_to(model), assumed_family(model)
    if attached is not None and attached.recipe is not None and attached.recipe.prompt_template is not None:
        return attached.recipe.prompt_template, False
    if family is not None and family.architecture is wan.ARCHITECTURE:
        return WAN, False
    return i2v_template("concat" if family is None else family.i2v_mode), True


def prompt_notes(model: ModelPatcher, positive: list[list] | None) -> list[str]:
    """Return notes if the text of a video was encoded in another way than in the MODEL's training.

    Only a MODEL whose file states its template is checked, and only text of this pack's node.

    Args:
        model: the MODEL.
        positive: the text's CONDITIONING; None for the MODEL's null prompt.
    """
    wanted, assumed = template_for(model)
    if assumed:
        return []
    if positive is None:
        if not needs_image(wanted):
            return []
        return [
            f"the model was trained with the start image in the prompt ({TITLES[wanted]}), but its null prompt does "
            f"not show this image. Connect Text + image encode to positive."
        ]
    found = {cast(PromptTemplate, values[_KEY]) for _, values in positive if _KEY in values}
    advice = f"Set template of Text + image encode to {TITLES[wanted]}."
    if wanted == WAN:
        advice = "Use CLIP Text Encode with Wan's UMT5."
    return [
        f"the text was encoded for {TITLES[template]}, but the model was trained with the prompts of {TITLES[wanted]}. "
        f"{advice}"
        for template in sorted(found - {wanted})
    ]
