"""The plan of the tables: their trainings and cells, and the time that they take on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.geometry import LATENT_CHANNELS, latent_frames
from magicdistill_core.pocket.files import SIZE
from magicdistill_core.pocket.render import DEFAULT_FRAMES

from ...config.precision import bf16_is_fast
from ...distributed import available_device
from ...networks.network import load_network, network_velocity
from ...networks.weights import null_prompt_of
from .design import Cell
from .trainings import Place

_REPEATS = 3


@dataclass(frozen=True)
class CallTime:
    """Seconds of one call of a batch, each the median of three.

    Attributes:
        batch: clips in the batch.
        sampled: a call in fp32, as the measures make it.
        forward: a call in bf16 without gradient, as trainings make it.
        backward: what the backward pass of a call in bf16 takes in addition.
    """

    batch: int
    sampled: float
    forward: float
    backward: float


def measure_calls(teacher: Path, batch: int) -> CallTime:
    """Measure the network calls of a teacher on this machine, on the GPU if there is one.

    Args:
        teacher: the teacher's model file.
        batch: clips in a batch.
    """
    device = available_device()
    checkpoint = load_checkpoint(teacher)
    shape = (batch, LATENT_CHANNELS, latent_frames(DEFAULT_FRAMES), SIZE // 8, SIZE // 8)
    x, sigma = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device), torch.full((batch,), 0.5)
    condition, prompt = concat_condition(x[:, :, :1], shape[2]), null_prompt_of(checkpoint)

    def seconds(dtype: torch.dtype, *, trained: bool) -> float:
        network = load_network(checkpoint, dtype, device).requires_grad_(trained)
        velocity = network_velocity(network, condition.to(dtype), prompt)

        def call() -> None:
            with torch.set_grad_enabled(trained):
                out = velocity(x.to(dtype), sigma.to(device))
                if trained:
                    out.float().square().mean().backward()

        return _seconds(call, device)

    trained_in = torch.bfloat16 if bf16_is_fast(device) else torch.float32
    forward = seconds(trained_in, trained=False)
    both = seconds(trained_in, trained=True)
    return CallTime(batch, seconds(torch.float32, trained=False), forward, max(0.0, both - forward))


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """Return the median time of a call, after one call to warm up."""
    call()
    times = []
    for _ in range(_REPEATS):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan(place: Place, cells: Sequence[Cell], samples: int, call: CallTime) -> str:
    """Return a Markdown table of the cells: their updates and network calls, and the time that these calls take.

    The time does not contain optimizers, validations, decoding, the reader, and the start of each process.

    Args:
        place: the trainings.
        cells: the chosen cells, in their order.
        samples: number of samples of each cell: start images times noise seeds.
        call: the time of a call.
    """
    lines = ["| cell | updates | batch | calls of the training | calls of the samples | hours |", "|---" * 6 + "|"]
    total, done = 0.0, dict.fromkeys((cell.training for cell in cells), 0)
    for cell in cells:
        sampled = cell.steps * samples / call.batch
        hours, updates, batch, trained = sampled * call.sampled / 3600, "", "", 0.0
        if cell.training is not None:
            config = place.config(cell.training)
            clips = config.data.micro_batch * config.data.accumulation
            warmup, each = place.calls_of(cell.training)
            end, before = cell.stage or config.updates, done[cell.training]
            made = each * (end - before) if before else warmup + each * end
            done[cell.training] = end
            trained = made.forward
            hours += (made.forward * call.forward + made.backward * call.backward) * clips / call.batch / 3600
            updates, batch = str(end), str(clips)
        total += hours
        lines.append(f"| {cell.name} | {updates} | {batch} | {trained:.0f} | {sampled:.0f} | {hours:.2f} |")
    lines.append(f"| all | | | | | {total:.1f} |")
    return "\n".join(lines)
