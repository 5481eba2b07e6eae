"""The null prompt in a file: the names of its tensors, and functions to read and store it.

The null prompt is the text conditioning for image-to-video without a prompt. A file that holds it needs no text
encoder.
"""

from pathlib import Path

from torch import Tensor

from .errors import CheckpointError
from .families.base import NullPrompt
from .prompt_templates import TITLES, PromptTemplate, architecture_of_template
from .safetensors_file import read_metadata, read_tensors

# The entry of a prompt file's metadata that names its prompt template.
TEMPLATE_ENTRY = "magicdistill.prompt_template"
NULL_TEXT_KEY = "null_prompt.text_states"
NULL_POOLED_KEY = "null_prompt.pooled"


def load_null_prompt(path: str | Path, architecture: str | None = None) -> NullPrompt:
    """Read the null prompt of a model file, or of a file that holds only a null prompt.

    Args:
        path: a safetensors file.
        architecture: name of the architecture (`Recipe.family`) for which it is needed; None checks none. The text
            states of HunyuanVideo and Wan have the same width, so their sizes do not tell them apart.

    Raises:
        CheckpointError: if the file is unreadable, has no `null_prompt.text_states`, or states that the text was
            encoded for another architecture.
    """
    tensors, _ = read_tensors(path)
    template = prompt_file_template(path)
    if architecture is not None and template is not None and architecture_of_template(template) != architecture:
        raise CheckpointError(
            f"{Path(path).name} was encoded for {TITLES[template]}, but the model is a {architecture} transformer. "
            f"Encode the text with the model's own pipeline (magicdistill encode-prompt)."
        )
    if NULL_TEXT_KEY not in tensors:
        raise CheckpointError(
            f"{Path(path).name} holds no null prompt. Expected the tensors {NULL_TEXT_KEY} and {NULL_POOLED_KEY} (Wan "
            f"needs only the first). Use a file that the trainer exported."
        )
    return NullPrompt(tensors[NULL_TEXT_KEY], tensors.get(NULL_POOLED_KEY))


def prompt_file_template(path: str | Path) -> PromptTemplate | None:
    """Return the prompt template that a prompt file states; None if it states none or an unknown one.

    Args:
        path: a safetensors file that `magicdistill encode-prompt` or another tool wrote.

    Raises:
        CheckpointError: if the file is unreadable.
    """
    stated = read_metadata(path).get(TEMPLATE_ENTRY)
    return stated if stated in TITLES else None


def pop_null_prompt(tensors: dict[str, Tensor]) -> NullPrompt | None:
    """Remove the null prompt from a file's tensors and return it; None if there is none.

    Args:
        tensors: the file's tensors by name; changed in place.
    """
    text, pooled = tensors.pop(NULL_TEXT_KEY, None), tensors.pop(NULL_POOLED_KEY, None)
    return None if text is None else NullPrompt(text, pooled)


def null_prompt_tensors(prompt: NullPrompt | None) -> dict[str, Tensor]:
    """Return the tensors that store a null prompt in a file, by name; an empty dictionary for None."""
    if prompt is None:
        return {}
    pooled = {} if prompt.pooled is None else {NULL_POOLED_KEY: prompt.pooled}
    return {NULL_TEXT_KEY: prompt.text_states} | pooled
