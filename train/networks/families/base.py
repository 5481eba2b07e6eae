"""The interface between the trainer and a family's network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from magicdistill_core.families.base import Condition, Family

from ...distributed import ContextGroup
from ..prompts import Prompts


class Inputs(Protocol):
    """A function that returns the keyword arguments of one call of the network."""

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Condition,
        prompt: Prompts,
        guidance: Tensor | None = None,
    ) -> dict[str, Any]:
        """Return the arguments.

        Args:
            x: noisy frames `[B, 16, T, H, W]`, without the frames that the start image sets.
            sigma: noise levels `[B]`.
            condition: the result of the family's `condition`.
            prompt: text conditioning: one prompt for all samples, or one per sample.
            guidance: guidance scales `[B]` for a network with a guidance embedding, else None.
        """


@dataclass(frozen=True)
class NetworkKind:
    """How a family's network is built and called.

    Attributes:
        family: the family.
        build: function `(shape) -> network`: builds a diffusers network of these sizes with random weights.
        built: function `(network) -> bool`: returns whether a network is of this kind.
        inputs: makes the arguments of a call.
        blocks: function `(network) -> blocks`: returns the blocks whose activations may be recomputed.
        share: function `(network, group)`: makes a network compute samples together with the processes of a group.
        lora_targets: regular expression for the names of the linear layers that a branch changes: those of the blocks.
    """

    family: Family
    build: Callable[[Any], nn.Module]
    built: Callable[[nn.Module], bool]
    inputs: Inputs
    blocks: Callable[[Any], Sequence[nn.Module]]
    share: Callable[[Any, ContextGroup], None]
    lora_targets: str

    def output(self, video: Tensor) -> Tensor:
        """Return the velocity of the noisy frames `[B, 16, T - kept_frames, H, W]` from the output for all frames.

        Args:
            video: output of the network, `[B, 16, T, H, W]`.
        """
        return video[:, :, self.family.kept_frames :]
