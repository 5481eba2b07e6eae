"""What the trainer has to know of a family's network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from magicdistill_core.families.base import Condition, Family, NullPrompt


class Inputs(Protocol):
    """Makes the keyword arguments of one call of the network."""

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Condition,
        prompt: NullPrompt,
        guidance: Tensor | None = None,
    ) -> dict[str, Any]:
        """
        Args:
            x: the noisy frames, `[B, 16, T, H, W]` without those that the start image gives.
            sigma: `[B]`.
            condition: what the family's `condition` made.
            prompt: text conditioning, repeated over the batch.
            guidance: `[B]`, for a network with a guidance embedding and for no other.
        """


@dataclass(frozen=True)
class NetworkKind:
    """A family's network.

    Attributes:
        family: whose.
        build: a randomly initialised network of given sizes, as diffusers has it.
        built: whether a network is of this kind.
        inputs: makes the arguments of a call.
        blocks: the blocks of which activations may be recomputed.
        lora_targets: regular expression of the linears that a branch changes: those of the blocks.
    """

    family: Family
    build: Callable[[Any], nn.Module]
    built: Callable[[nn.Module], bool]
    inputs: Inputs
    blocks: Callable[[Any], Sequence[nn.Module]]
    lora_targets: str

    def output(self, video: Tensor) -> Tensor:
        """The velocity of the noisy frames, from what the network gives for all of them."""
        return video[:, :, self.family.kept_frames :]
