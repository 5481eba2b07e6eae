"""The null prompt in a file: which tensors hold it, and how it is taken out and put in."""

from pathlib import Path

from torch import Tensor

from .errors import CheckpointError
from .families.base import NullPrompt
from .safetensors_file import read_tensors

NULL_TEXT_KEY = "null_prompt.text_states"
NULL_POOLED_KEY = "null_prompt.pooled"


def load_null_prompt(path: str | Path) -> NullPrompt:
    """The null prompt of a checkpoint, or of a file that holds nothing else.

    Raises:
        CheckpointError: if the file is unreadable or has no `null_prompt.*` tensors.
    """
    tensors, _ = read_tensors(path)
    if NULL_TEXT_KEY not in tensors:
        raise CheckpointError(
            f"{Path(path).name} holds no null prompt. Expected the tensors {NULL_TEXT_KEY} and {NULL_POOLED_KEY} (the "
            f"latter not for Wan)."
        )
    return NullPrompt(tensors[NULL_TEXT_KEY], tensors.get(NULL_POOLED_KEY))


def pop_null_prompt(tensors: dict[str, Tensor]) -> NullPrompt | None:
    """Take the null prompt out of a file's tensors."""
    text, pooled = tensors.pop(NULL_TEXT_KEY, None), tensors.pop(NULL_POOLED_KEY, None)
    return None if text is None else NullPrompt(text, pooled)


def null_prompt_tensors(prompt: NullPrompt | None) -> dict[str, Tensor]:
    """A null prompt as the tensors by which a file carries it."""
    if prompt is None:
        return {}
    pooled = {} if prompt.pooled is None else {NULL_POOLED_KEY: prompt.pooled}
    return {NULL_TEXT_KEY: prompt.text_states} | pooled
