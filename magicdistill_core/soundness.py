"""Whether what a file holds can be computed with at all, before a network stumbles over it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CheckpointError
from .families.base import NullPrompt
from .layouts.modules import listing
from .wrappers import QUANTISATION_MARKS


def check_number_types(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of whole numbers that no scale stands beside.

    Raises:
        CheckpointError: naming them.
    """
    scaled = {key.rpartition(".")[0] for key in state if key.endswith(QUANTISATION_MARKS)}
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
            f"{source} holds {len(bare)} weights as {', '.join(kinds)} without the scales that would make numbers of "
            f"them ({listing(bare, 3)}). It is damaged, or of a quantiser that is not known here: use the bf16 file of "
            f"the same model, and Quantise to int8 for a small one."
        )


def check_null_prompt(prompt: NullPrompt, source: str, text_dim: int | None, pooled_dim: int | None) -> None:
    """Refuse a null prompt that the network could not read, or that would spoil every video.

    Args:
        text_dim, pooled_dim: the widths that the network reads; None where they are not known.

    Raises:
        CheckpointError: saying what is wrong with it.
    """
    parts: dict[str, tuple[Tensor, tuple[int | None, ...]]] = {"text states": (prompt.text_states, (1, None, text_dim))}
    if prompt.pooled is not None:
        parts["pooled text"] = (prompt.pooled, (1, pooled_dim))
    for name, (tensor, wanted) in parts.items():
        fits = tensor.ndim == len(wanted) and tensor.numel() > 0
        fits = fits and all(size in (found, None) for size, found in zip(wanted, tensor.shape, strict=True))
        if not fits or not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            expected = ", ".join("any" if size is None else str(size) for size in wanted)
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"The null prompt in {source} cannot be used: its {name} are {list(tensor.shape)} in {kind}, expected "
                f"[{expected}] of finite floating point numbers. Export the file again from its training run."
            )
