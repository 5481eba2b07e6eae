"""Checks that a network can compute with the contents of a file, before the network is built."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CheckpointError
from .families.base import NullPrompt
from .layouts.modules import listing
from .quantised_files import DESCRIPTION
from .wrappers import QUANTISATION_MARKS


def check_number_types(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse integer and boolean weights that no description converts to real numbers.

    Args:
        state: the tensors of the file, by name, after `describe_quantised`.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if there are such weights; the message lists them.
    """
    scaled = {key.removesuffix(DESCRIPTION) for key in state if key.endswith(DESCRIPTION)}
    bare = [
        key
        for key, tensor in state.items()
        if not tensor.is_floating_point()
        and not key.endswith(QUANTISATION_MARKS)
        and key.rpartition(".")[0] not in scaled
    ]
    if bare:
        kinds = sorted({str(state[key].dtype).removeprefix("torch.") for key in bare})
        raise CheckpointError(
            f"{source} holds {len(bare)} weights as {', '.join(kinds)} without the scales that convert them to real "
            f"numbers ({listing(bare, 3)}). The file is damaged, or its quantiser is unknown here. Use the bf16 file "
            f"of the same model. For a small file, convert that one with Quantise to int8."
        )


def check_null_prompt(
    prompt: NullPrompt, source: str, text_dim: int | None, pooled_dim: int | None, name: str = "null prompt"
) -> None:
    """Refuse a null prompt or a caption with a wrong shape, or with values that are not finite numbers.

    Args:
        prompt: the text conditioning in a model file.
        source: the file's name for error messages.
        text_dim: the width of text states that the network expects; None if unknown.
        pooled_dim: the width of pooled text that the network expects; None if unknown.
        name: what the prompt is, for error messages; for example a caption.

    Raises:
        CheckpointError: if a tensor's shape, dtype or values are wrong.
    """
    parts: dict[str, tuple[Tensor, tuple[int | None, ...]]] = {"text states": (prompt.text_states, (1, None, text_dim))}
    if prompt.pooled is not None:
        parts["pooled text"] = (prompt.pooled, (1, pooled_dim))
    for part, (tensor, wanted) in parts.items():
        fits = tensor.ndim == len(wanted) and tensor.numel() > 0
        fits = fits and all(size in (found, None) for size, found in zip(wanted, tensor.shape, strict=True))
        if not fits or not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            expected = ", ".join("any" if size is None else str(size) for size in wanted)
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"The {name} in {source} cannot be used: its {part} are {list(tensor.shape)} in {kind}, expected "
                f"[{expected}] with finite floating point numbers. Export the file again from its training run."
            )
