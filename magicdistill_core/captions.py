"""Captions in a file: the names of their tensors, and functions to read and store them.

A model file or LoRA may carry a small vocabulary: the text conditioning of a few captions, by caption. It was trained
with these captions, so it can be told one of them without a text encoder.
"""

from collections.abc import Mapping

from torch import Tensor

from .errors import CheckpointError
from .families.base import NullPrompt

# More captions are no vocabulary to choose from, and their text states would make the file large.
MAX_CAPTIONS = 32
CAPTION_PREFIX = "captions."
_TEXT, _POOLED = ".text_states", ".pooled"


def caption_tensors(captions: Mapping[str, NullPrompt]) -> dict[str, Tensor]:
    """Return the tensors that store captions in a file, by name; empty without captions.

    Args:
        captions: the text conditioning by caption, at most `MAX_CAPTIONS`.

    Raises:
        CheckpointError: if there are more.
    """
    if len(captions) > MAX_CAPTIONS:
        raise CheckpointError(
            f"A file can carry {MAX_CAPTIONS} captions, but there are {len(captions)}. Choose the most useful ones, or "
            f"none."
        )
    tensors = {f"{CAPTION_PREFIX}{caption}{_TEXT}": prompt.text_states for caption, prompt in captions.items()}
    return tensors | {
        f"{CAPTION_PREFIX}{caption}{_POOLED}": prompt.pooled
        for caption, prompt in captions.items()
        if prompt.pooled is not None
    }


def pop_captions(tensors: dict[str, Tensor]) -> dict[str, NullPrompt]:
    """Remove the captions from a file's tensors, and return their text conditioning by caption, in alphabetical order.

    Args:
        tensors: the file's tensors by name; changed in place.
    """
    stored = {key: tensors.pop(key) for key in list(tensors) if is_caption(key)}
    names = sorted(key[len(CAPTION_PREFIX) : -len(_TEXT)] for key in stored if key.endswith(_TEXT))
    return {
        name: NullPrompt(stored[f"{CAPTION_PREFIX}{name}{_TEXT}"], stored.get(f"{CAPTION_PREFIX}{name}{_POOLED}"))
        for name in names
    }


def is_caption(key: str) -> bool:
    """Return whether a tensor's name is that of a stored caption."""
    return key.startswith(CAPTION_PREFIX) and key.endswith((_TEXT, _POOLED))


def find_caption(captions: Mapping[str, NullPrompt], wanted: str, source: str) -> NullPrompt:
    """Return the text conditioning of a stored caption.

    Args:
        captions: the text conditioning by caption.
        wanted: the caption, as it was written in the training, or with other capitals.
        source: the name of the model for error messages.

    Raises:
        CheckpointError: if the model has no such caption; the message lists those that it has.
    """
    if not captions:
        raise CheckpointError(
            f"{source} carries no captions. Expected a file that MagicDistillation exported from a training with up to "
            f"{MAX_CAPTIONS} different captions. Leave the caption empty to use the null prompt, or choose such a file."
        )
    if wanted in captions:
        return captions[wanted]
    name = next((name for name in captions if name.casefold() == wanted.casefold()), None)
    if name is None:
        raise CheckpointError(
            f"{source} has no caption {wanted!r:.80}. Its captions are: {'; '.join(captions)}. Choose one of them: "
            f"other texts need the text encoder of the model's release."
        )
    return captions[name]
