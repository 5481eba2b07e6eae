"""GPUs: their memory, their speed, and which share of it a training reaches."""

from dataclasses import dataclass, replace
from typing import Any

from magicdistill_core.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: its name in the command.
        memory: GB of 10^9 bytes.
        tflops: 10^12 multiplications and additions per second in bf16 with fp32 sums, of dense matrices.
        bandwidth: GB/s of its memory.
        link: GB/s that it can send to another GPU of its machine.
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float
    link: float


# From NVIDIA's data sheets. NVLink is given there for both directions together, tensor cores often with sparsity.
GPUS = (
    Gpu("a100", memory=85, tflops=312, bandwidth=2039, link=300),
    Gpu("a100-40gb", memory=42, tflops=312, bandwidth=1555, link=300),
    Gpu("h100", memory=85, tflops=989, bandwidth=3350, link=450),
    Gpu("h100-pcie", memory=85, tflops=756, bandwidth=2039, link=64),
    Gpu("h200", memory=150, tflops=989, bandwidth=4800, link=450),
    Gpu("b200", memory=192, tflops=2250, bandwidth=8000, link=900),
    Gpu("l40s", memory=48, tflops=362, bandwidth=864, link=32),
    Gpu("rtx4090", memory=25, tflops=165, bandwidth=1008, link=32),
    Gpu("rtx5090", memory=34, tflops=209, bandwidth=1792, link=64),
)


@dataclass(frozen=True)
class Reached:
    """Shares of a GPU's speeds that the trainer's networks reach.

    The values were fitted to the times of 13B networks on an H200 (`python -m benchmarks times`, docs/time.md).

    Attributes:
        products: of `tflops`, in matrix products.
        attention: of `tflops`, in attention.
        attention_backward: of `tflops`, in the backward pass of attention.
        moved: of `bandwidth`, in all other operations.
        compiled: share of the time of everything except attention that compiled blocks take. From one measurement: 33
            frames of 544x960 in docs/performance.md.
        seconds_per_operation: time in which Python starts one operation. Networks on small clips take this time.
    """

    products: float = 0.575
    attention: float = 0.584
    attention_backward: float = 0.545
    moved: float = 0.708
    compiled: float = 0.626
    seconds_per_operation: float = 1.5e-5


REACHED = Reached()


def gpu_named(
    name: str, memory: float | None = None, tflops: float | None = None, bandwidth: float | None = None
) -> Gpu:
    """Return a GPU of the table, or one that is described by its numbers.

    Args:
        name: the GPU's name; capitals, spaces and hyphens make no difference.
        memory: GB of its memory; None takes the table's.
        tflops: its bf16 TFLOP/s; None takes the table's.
        bandwidth: GB/s of its memory; None takes the table's.

    Raises:
        ConfigError: if the table has no such GPU and a number is missing, or if a number is not positive.
    """
    given = {"memory": memory, "tflops": tflops, "bandwidth": bandwidth}
    numbers: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if wrong := [f"--{key} {value:g}" for key, value in numbers.items() if not 0 < value < float("inf")]:
        raise ConfigError(f"{', '.join(wrong)}: expected a positive number. Take it from the GPU's data sheet.")
    known = next((gpu for gpu in GPUS if _plain(gpu.name) == _plain(name)), None)
    if known is not None:
        return replace(known, **numbers)
    if missing := [f"--{key}" for key in given if key not in numbers]:
        raise ConfigError(
            f"The GPU {name!r} is not in the table, which has {', '.join(gpu.name for gpu in GPUS)}. Choose one of "
            f"them, or describe yours with {', '.join(missing)} (GB, dense bf16 TFLOP/s, GB/s)."
        )
    return Gpu(name, link=32, **numbers)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
