"""Turn a prompt that is stored in a model file into CONDITIONING."""

import torch

from ..magicdistill_core.families import wan
from ..magicdistill_core.families.base import Family, NullPrompt

Conditioning = list[list]


def as_conditioning(prompt: NullPrompt, family: Family) -> Conditioning:
    """Return a stored prompt as CONDITIONING, padded if the network expects padding (Wan).

    Args:
        prompt: the null prompt or a caption.
        family: the family of the MODEL.
    """
    text, pooled = prompt.text_states, prompt.pooled
    if family.architecture is wan.ARCHITECTURE and text.shape[1] < wan.TEXT_TOKENS:
        text = torch.nn.functional.pad(text, (0, 0, 0, wan.TEXT_TOKENS - text.shape[1]))
    return [[text, {} if pooled is None else {"pooled_output": pooled}]]
