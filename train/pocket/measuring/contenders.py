"""The models that are compared, and their samples: the same start images and the same noise for all of them.

A *recipe* is the sampling settings (shift, sampler) that a model file stores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import latent_frames
from magicdistill_core.pocket.files import TEACHER
from magicdistill_core.recipe import Recipe

from ...distributed import available_device
from ...methods.draws import keyed_generator
from ...networks.network import load_network
from ...networks.prompts import stack_prompts
from ...networks.sampling import generate
from ...networks.weights import load_weights_on, null_prompt_of


@dataclass(frozen=True)
class Contender:
    """A model file with a number of sampling steps.

    Attributes:
        name: name of the row in the table.
        file: the model file of a complete transformer, or a generator LoRA.
        steps: number of sampling steps, instead of the recipe's.
        base: the model file to which a LoRA belongs; no effect for a complete transformer.
    """

    name: str
    file: Path
    steps: int
    base: Path = TEACHER


def load_contender(contender: Contender) -> tuple[Checkpoint, Recipe]:
    """Load a contender's weights, a LoRA merged into its base, and the recipe with their shift and sampler.

    Args:
        contender: the model file and its name.

    Raises:
        CheckpointError: if the file is unusable or has no recipe.
    """
    checkpoint = load_weights_on(contender.file, contender.base)
    if checkpoint.recipe is None:
        raise CheckpointError(
            f"{checkpoint.source} ({contender.name}) carries no recipe, so its shift is unknown and its samples would "
            f"not be comparable. Choose a file that `magicdistill export` or `magicdistill pocket train-teacher` wrote."
        )
    return checkpoint, checkpoint.recipe


def teacher_contenders(file: Path, steps: Sequence[int]) -> list[Contender]:
    """Return a teacher at several numbers of steps.

    Args:
        file: the teacher's model file.
        steps: the numbers of steps, each at least 1.

    Raises:
        ConfigError: if a number of steps is not positive.
    """
    if min(steps) < 1:
        raise ConfigError(f"The teacher cannot sample with {min(steps)} steps. Choose 1 step or more.")
    return [Contender(f"teacher, {_counted(number)}", file, number) for number in steps]


def trained_contender(text: str, base: Path = TEACHER) -> Contender:
    """Return the contender of a command's option, with the steps of its recipe.

    Args:
        text: `FILE` or `NAME=FILE`. Without a name, the file's own name without its suffix is taken.
        base: the model file to which a LoRA belongs.

    Raises:
        CheckpointError: if the file is unusable or has no recipe.
    """
    name, file = named_file(text)
    _, recipe = load_contender(Contender(name, file, 1, base))
    return Contender(f"{name}, {_counted(recipe.steps)}", file, recipe.steps, base)


def named_file(text: str) -> tuple[str, Path]:
    """Return the name and the file of a command's option.

    Args:
        text: `FILE` or `NAME=FILE`. Without a name, the file's own name without its suffix is taken.
    """
    given, separator, rest = text.partition("=")
    # A path may contain the sign itself.
    return (given, Path(rest)) if separator and not Path(text).exists() else (Path(text).stem, Path(text))


def baselines_of(teachers: Sequence[Contender]) -> list[str]:
    """Return the names of the contenders with which others are compared: the teacher at its most steps, and at four.

    Args:
        teachers: the teacher at several numbers of steps.
    """
    most = max(contender.steps for contender in teachers)
    return [contender.name for contender in teachers if contender.steps in (most, 4)]


def _counted(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def noise_seed(clip: int, seed: int) -> int:
    """Return the seed of the noise of one sample. It depends only on its arguments, not on the model.

    Args:
        clip: number of the start image, from 0.
        seed: number of the sample of this image.
    """
    return keyed_generator("measuring", clip, seed).initial_seed()


def sample(
    contender: Contender,
    start_images: Tensor,
    seeds: Sequence[int],
    batch: int = 16,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Sample several clips for each start image, with the shift and the sampler of the contender's recipe.

    It runs in fp32, on the GPU if there is one.

    Args:
        contender: the model and its number of steps.
        start_images: latents of the start images, `[N, 16, 1, h, w]`. Image n has the noise of clip n.
        seeds: the numbers of the samples of each image; S of them.
        batch: number of samples in one network call.
        advance: called after each batch with the number of its samples.

    Returns:
        Latents `[N, S, 16, t, h, w]` in float32 on the CPU.

    Raises:
        CheckpointError: if the file is unusable or has no recipe.
    """
    checkpoint, recipe = load_contender(contender)
    places = [(clip, seed) for clip in range(len(start_images)) for seed in seeds]
    made = sample_each(
        checkpoint,
        recipe,
        contender.steps,
        start_images[[clip for clip, _ in places]],
        [null_prompt_of(checkpoint)] * len(places),
        [noise_seed(clip, seed) for clip, seed in places],
        batch,
        advance,
    )
    return made.unflatten(0, (len(start_images), len(seeds)))


@torch.no_grad()
def sample_each(
    checkpoint: Checkpoint,
    recipe: Recipe,
    steps: int,
    start_images: Tensor,
    prompts: Sequence[NullPrompt],
    noise: Sequence[int],
    batch: int = 16,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Sample one clip for each start image, each with its own prompt and noise.

    It runs in fp32, on the GPU if there is one.

    Args:
        checkpoint: the model.
        recipe: its recipe, for shift, sampler and length.
        steps: number of sampling steps.
        start_images: latents of the start images, `[N, 16, 1, h, w]`.
        prompts: the text conditioning of each clip.
        noise: the seed of each clip's noise.
        batch: number of samples in one network call.
        advance: called after each batch with the number of its samples.

    Returns:
        Latents `[N, 16, t, h, w]` in float32 on the CPU.
    """
    device = available_device()
    network = load_network(checkpoint, device=device)
    sigmas, frames = few_step_sigmas(steps, recipe.shift), latent_frames(recipe.frames)
    made = []
    for first in range(0, len(start_images), batch):
        part = slice(first, first + batch)
        images, seeds = StartImage(start_images[part].to(device)), noise[part]
        guidance = recipe.embedded_guidance
        texts = stack_prompts(prompts[part])
        made.append(generate(network, texts, images, frames, sigmas, recipe.sampler, seeds, guidance=guidance).cpu())
        advance(len(seeds))
    return torch.cat(made)
