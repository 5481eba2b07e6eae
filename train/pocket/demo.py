"""The demo: distil the pocket teacher with weak-to-strong (W2S) distribution matching, export, and sample videos."""

import logging
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import StartImage
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import frames_to_unit, latent_frames, unit_to_frames
from magicdistill_core.media.video import contact_sheet
from magicdistill_core.pocket.files import TEACHER, VAE
from magicdistill_core.pocket.render import portrait_clip

from ..config.reading import load_config
from ..console import progress_bar, show
from ..data.vae import Vae, load_vae
from ..distributed import prepare_environment
from ..networks.network import load_network
from ..networks.sampling import generate
from ..networks.weights import null_prompt_of
from ..run_folder import FAKE_LORA_FILE, FOLDER, checkpoint_folder
from ..tools.export import export_run
from ..tools.sample import resolve_settings, sample_file
from .latents import write_latents

logger = logging.getLogger(__name__)

PRESET = Path(__file__).parents[1] / "presets" / "pocket_demo.yaml"
CLIPS = 64
# Different from the seeds of all training portraits.
PORTRAIT_SEED = 900_001
TEACHER_STEPS = 28


def demo(out: Path) -> None:
    """Distil the pocket teacher for a few minutes and show the result.

    Writes `run/`, `portraits/`, `generator.safetensors`, `fake_lora.safetensors`, `start.png`, `portrait.mp4` and
    `compare.png` to `out`. `compare.png` shows the start image, the teacher with 28 and with 4 steps, and the distilled
    generator with 4 steps.

    Args:
        out: the folder; it is created if it is missing.

    Raises:
        ConfigError: if `out` already holds a demo.
    """
    if (out / "run" / FOLDER).exists():
        raise ConfigError(f"{out} already holds a demo. Choose another folder with --out, or remove this one.")
    out.mkdir(parents=True, exist_ok=True)

    show(f"1/4 Rendering and encoding {CLIPS} pocket portraits", style="bold")
    with progress_bar() as bar:
        task = bar.add_task("portraits", total=CLIPS)
        write_latents(out / "portraits", CLIPS, advance=lambda: bar.advance(task))

    show("2/4 Weak-to-strong distillation", style="bold")
    config = load_config(PRESET, [f"run={out / 'run'}", f"data.dataset={out / 'portraits'}"])
    prepare_environment()
    from ..run.trainer import train

    train(config)

    show("3/4 Exporting", style="bold")
    generator = out / "generator.safetensors"
    export_run(out / "run", generator)
    lora = checkpoint_folder(out / "run") / FAKE_LORA_FILE
    (out / FAKE_LORA_FILE).write_bytes(lora.read_bytes())

    show("4/4 Sampling", style="bold")
    start = portrait_clip(PORTRAIT_SEED)[0]
    start_file = out / "start.png"
    Image.fromarray(start.numpy()).save(start_file)
    sample_file(generator, start_file, out / "portrait.mp4")
    compare(out / "compare.png", start, generator)
    show(f"Look at {out / 'compare.png'} and {out / 'portrait.mp4'}")


def compare(path: Path, start: Tensor, generator: Path) -> None:
    """Write a picture that compares teacher (28 and 4 steps) and distilled generator (4 steps) from the same noise.

    Args:
        path: the picture to write.
        start: the start image, uint8 `[H, W, 3]`.
        generator: the distilled model file.
    """
    vae = load_vae(VAE)
    strips = [
        ("start image", start[None]),
        (f"teacher, {TEACHER_STEPS} steps", _clip(vae, TEACHER, start, TEACHER_STEPS)),
        ("teacher, 4 steps", _clip(vae, TEACHER, start, 4)),
        ("distilled, 4 steps", _clip(vae, generator, start, 4)),
    ]
    contact_sheet([clip for _, clip in strips], [label for label, _ in strips], columns=9).save(path)


@torch.no_grad()
def _clip(vae: Vae, file: Path, start: Tensor, steps: int, seed: int = 0) -> Tensor:
    checkpoint = load_checkpoint(file)
    settings = resolve_settings(checkpoint.recipe, checkpoint.source, seed, steps)
    latents = generate(
        load_network(checkpoint),
        null_prompt_of(checkpoint),
        StartImage(vae.encode_image(frames_to_unit(start[None])[:, 0])),
        latent_frames(settings.frames),
        few_step_sigmas(steps, settings.shift),
        settings.sampler,
        seed,
    )
    return unit_to_frames(vae.decode(latents))
