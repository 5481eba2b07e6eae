"""The GPUs of a training, and how fast they send to each other."""

from dataclasses import dataclass

from .gpus import Gpu

# GPUs of one machine, which are connected directly.
GPUS_PER_NODE = 8
# GB/s that each GPU can send to other machines: one adapter of 400 Gbit/s for each GPU.
NETWORK = 50.0


@dataclass(frozen=True)
class Machines:
    """The GPUs of a training.

    Attributes:
        gpu: their kind.
        count: their number, with one process each.
        network: GB/s that each can send to another machine, if there are several.
    """

    gpu: Gpu
    count: int
    network: float

    @property
    def link(self) -> float:
        """GB/s of the slowest connection on the way from one GPU to the next."""
        return self.link_within(self.count)

    def link_within(self, count: int) -> float:
        """Return the GB/s of the slowest connection among neighbouring GPUs.

        Args:
            count: their number.
        """
        return self.gpu.link if count <= GPUS_PER_NODE else min(self.gpu.link, self.network)
