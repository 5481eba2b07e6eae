"""The demo: distil the pocket teacher with weak-to-strong (W2S) distribution matching, export, and compare models."""

import time
from pathlib import Path

from PIL import Image

from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.pocket.files import FOUR_STEP_LORA, ONE_STEP_LORA, TEACHER, VAE
from magicdistill_core.pocket.render import FRAMES_PER_SECOND, portrait_clip
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_metadata

from ..config.reading import load_config
from ..console import progress_bar, show, show_facts
from ..data.vae import load_vae
from ..distributed import prepare_environment
from ..run_folder import FAKE_LORA_FILE, FOLDER, checkpoint_folder
from ..tools.export import export_run
from ..tools.sample import sample_file
from .comparison import Row, sample_row, write_comparison
from .latents import write_latents

PRESET = Path(__file__).parents[1] / "presets" / "pocket_demo.yaml"
CLIPS = 48
# Different from the seeds of all training portraits.
PORTRAIT_SEED = 900_001
# The moving picture shows the clips at half speed.
_FPS = FRAMES_PER_SECOND / 2


def demo(out: Path) -> None:
    """Distil the pocket teacher for a few minutes and show the result.

    Writes `run/`, `portraits/`, `generator.safetensors`, `fake_lora.safetensors`, `start.png`, `portrait.mp4`,
    `compare.png` and `compare.webp` to `out`. The last two show the start image and, from the same noise, clips of the
    teacher at its own number of steps and at that of the generator, of this run's generator, and of the shipped
    generators of several steps and of one step.

    Args:
        out: the folder; it is created if it is missing.

    Raises:
        ConfigError: if `out` already holds a demo.
        CheckpointError: if a shipped model file is missing or damaged.
    """
    if (out / "run" / FOLDER).exists():
        raise ConfigError(f"{out} already holds a demo. Choose another folder with --out, or remove this one.")
    recipes = {file: _recipe(file) for file in (TEACHER, FOUR_STEP_LORA, ONE_STEP_LORA)}
    out.mkdir(parents=True, exist_ok=True)

    show(f"1/4 Rendering and encoding {CLIPS} pocket portraits", style="bold")
    with progress_bar() as bar:
        task = bar.add_task("portraits", total=CLIPS)
        write_latents(out / "portraits", CLIPS, advance=lambda: bar.advance(task))

    show("2/4 Weak-to-strong distillation", style="bold")
    config = load_config(PRESET, [f"run={out / 'run'}", f"data.dataset={out / 'portraits'}"])
    prepare_environment()
    from ..run.trainer import train

    began = time.perf_counter()
    train(config)
    seconds = time.perf_counter() - began

    show("3/4 Exporting", style="bold")
    generator = out / "generator.safetensors"
    export_run(out / "run", generator)
    lora = checkpoint_folder(out / "run") / FAKE_LORA_FILE
    (out / FAKE_LORA_FILE).write_bytes(lora.read_bytes())

    show("4/4 Sampling", style="bold")
    start = portrait_clip(PORTRAIT_SEED)[0]
    Image.fromarray(start.numpy()).save(out / "start.png")
    sample_file(generator, out / "start.png", out / "portrait.mp4")
    vae = load_vae(VAE)
    rows = comparison_rows(recipes, generator, config.updates, seconds)
    sampled = [sample_row(row, vae, start) for row in rows]
    write_comparison(out / "compare.png", out / "compare.webp", start, sampled, _FPS)

    show("compare.png shows, from top to bottom:", style="bold")
    show_facts({"start image": "the first frame of every clip"} | {one.row.label: one.fact() for one in sampled})
    show(f"Look at {out / 'compare.png'}, {out / 'compare.webp'} and {out / 'portrait.mp4'}")


def comparison_rows(recipes: dict[Path, Recipe], generator: Path, updates: int, seconds: float) -> list[Row]:
    """Return the models that the demo compares, the teacher first.

    Args:
        recipes: recipes of the shipped files.
        generator: the model file of the demo's own run.
        updates: number of generator updates of that run.
        seconds: the time of that run.
    """
    steps, many = recipes[FOUR_STEP_LORA].steps, recipes[TEACHER].steps
    rows = [
        Row(f"teacher, {_steps(many)}", "the model before distillation", TEACHER, many),
        Row(f"teacher, {_steps(steps)}", "the same model", TEACHER, steps),
        Row(
            f"this run ({updates} updates), {_steps(steps)}",
            f"the teacher after the distillation of {seconds:.0f} s just now",
            generator,
            steps,
        ),
    ]
    for file, recipe in recipes.items():
        if file == TEACHER:
            continue
        label = f"shipped ({recipe.training_step} updates), {_steps(recipe.steps)}"
        rows.append(Row(label, f"a longer distillation, the shipped file {file.name}", file, recipe.steps))
    return rows


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _recipe(file: Path) -> Recipe:
    recipe = Recipe.from_metadata(read_metadata(file), file.name)
    if recipe is None:
        raise CheckpointError(
            f"{file} carries no recipe, so its number of steps is unknown. Restore the shipped file of this name."
        )
    return recipe
