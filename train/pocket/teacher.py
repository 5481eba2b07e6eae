"""Train the pocket teacher: an `sft` run on rendered portraits that starts from random weights.

The teacher has few blocks, but more channels than a token has input values, which are 132. The network must return the
noise in its velocity: so there is room for the noise and for what is computed from it. Its prompt is a fixed random
tensor.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS, HEAD_DIM, NetworkShape
from magicdistill_core.geometry import LATENT_CHANNELS
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.pocket.vocabulary import POOLED_DIM, PROMPT_SCALE, TEXT_DIM, TEXT_TOKENS
from magicdistill_core.recipe import Recipe

from ..config.reading import load_config
from ..config.training import TrainConfig
from ..data.dataset import LatentDataset
from ..data.vae import Vae, load_vae
from ..distributed import available_device, prepare_environment
from ..methods.draws import keyed_generator
from ..networks.network import build_network
from ..run_folder import RUN_FILE
from ..tools.export import export_run

# The size of a new teacher.
HEADS, DOUBLE_BLOCKS, SINGLE_BLOCKS = 2, 1, 4
PRESET = Path(__file__).parents[1] / "presets" / "pocket_teacher.yaml"


def network_shape(
    heads: int = HEADS, double_blocks: int = DOUBLE_BLOCKS, single_blocks: int = SINGLE_BLOCKS
) -> NetworkShape:
    """Return the sizes of the teacher.

    Args:
        heads: number of attention heads. Each has the width 128, as ComfyUI expects it of HunyuanVideo.
        double_blocks: number of double blocks.
        single_blocks: number of single blocks.
    """
    return NetworkShape(
        in_channels=CONCAT_CHANNELS,
        hidden=heads * HEAD_DIM,
        double_blocks=double_blocks,
        single_blocks=single_blocks,
        refiner_blocks=2,
        text_dim=TEXT_DIM,
        pooled_dim=POOLED_DIM,
        guidance_embed=False,
    )


def null_prompt(seed: int) -> NullPrompt:
    """Return the fixed text conditioning for "no prompt": small random numbers from a seed."""
    generator = keyed_generator(seed, "null prompt")
    text = PROMPT_SCALE * torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator)
    return NullPrompt(text, PROMPT_SCALE * torch.randn(1, POOLED_DIM, generator=generator))


def write_untrained(path: Path, shape: NetworkShape, data: LatentDataset, seed: int) -> None:
    """Write a network with random weights as the start of a training.

    Args:
        path: the model file to write.
        shape: the sizes of the network.
        data: the dataset, for the video's size in the recipe (the settings stored in the file).
        seed: seed of the weights and of the null prompt.
    """
    # diffusers has no generator argument for the initialisation. Seed the global generator and restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(shape)
    save_checkpoint(path, diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), _recipe(data), null_prompt(seed))


def _recipe(data: LatentDataset) -> Recipe:
    return Recipe(
        kind="teacher", steps=28, shift=5.0, width=data.width, height=data.height, frames=data.frames, fps=data.fps
    )


@torch.no_grad()
def visible_weights(vae: Vae, latents: Tensor) -> list[float]:
    """Measure how much noise on each latent channel changes the decoded clip.

    All channels of whitened latents have the same variance, but the first components determine nearly all visible
    content. The loss uses these weights to account for that.

    Args:
        vae: the video autoencoder.
        latents: `[B, 16, T, H, W]` on its device.

    Returns:
        The RMS change of the decoded clip per channel, divided by the mean over the channels.
    """
    before = vae.decode(latents)
    gains = []
    for channel in range(LATENT_CHANNELS):
        noise = torch.randn(latents[:, channel].shape, generator=keyed_generator("visible weights", channel))
        moved = latents.clone()
        moved[:, channel] += 0.5 * noise.to(moved)
        gains.append((vae.decode(moved) - before).square().mean().sqrt())
    gain = torch.stack(gains)
    return [float(f"{float(value):.4g}") for value in gain / gain.mean()]


def teacher_config(
    run: Path, dataset: Path, vae: Path, start: Path | None, shape: NetworkShape, settings: Sequence[str]
) -> TrainConfig:
    """Load the preset and set the run, the dataset, the VAE, the start weights and the channel weights.

    Args:
        run: the run folder.
        dataset: the folder of encoded portraits.
        vae: the VAE that encoded them.
        start: the teacher to start from. None starts from a network with random weights, whose file is written next to
            the run if it does not exist.
        shape: the sizes of a network with random weights.
        settings: further settings as `key=value`, as for `train`.

    Returns:
        The complete configuration, for `train_teacher`.
    """
    data = LatentDataset(dataset)
    device = available_device()
    latents = data.latents(range(min(2, len(data)))).float().to(device)
    # The face is in the middle of the picture. This part of two clips carries as much information as full clips and
    # costs 1/30.
    top, left = (side // 4 for side in latents.shape[3:])
    weights = visible_weights(load_vae(vae, device), latents[:, :, :2, top:-top, left:-left])
    begin = start or run.with_name(f"{run.name}-start.safetensors")
    own = [f"run={run}", f"data.dataset={dataset}", f"validation.vae={vae}", f"model.teacher={begin}"]
    config = load_config(PRESET, [*own, f"method.channel_weights={weights}", *settings])
    if start is None and not begin.exists():
        write_untrained(begin, shape, data, config.seed)
    return config


def train_teacher(config: TrainConfig, out: Path) -> None:
    """Train the teacher or resume its run, and write the averaged weights.

    Args:
        config: the configuration, from `teacher_config`.
        out: the model file to write.
    """
    prepare_environment()
    from ..run.trainer import train  # DeepSpeed reads the environment on import

    train(config, resume=(config.run / RUN_FILE).exists())
    # In bf16 also where the machine trains in fp32: the file is half as large.
    export_run(config.run, out, dtype=torch.bfloat16)
