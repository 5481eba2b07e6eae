"""Training with captions: every call of a sample has its own prompt, and runs without captions are as before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE, concat_condition
from magicdistill_core.lora_file import load_lora
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.objectives.noise_levels import logit_normal_sigma
from magicdistill_core.prompt_templates import HUNYUAN_I2V_CONCAT, HUNYUAN_VIDEO, TITLES, PromptTemplate
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, metrics_of, random_prompt
from train.config.methods import MatchingConfig
from train.config.reading import parse_config
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError, DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.data.text_index import TextIndex
from train.methods.batch_prompts import batch_prompts
from train.methods.draws import Draws
from train.networks.network import load_network, network_velocity
from train.run.preflight import check_inputs

SPEAKS, EMPTY = random_prompt(4, seed=5), random_prompt(2, seed=6)
WORDS = {"speaks": SPEAKS, "turns left": random_prompt(6, seed=7), "blinks": random_prompt(1, seed=8), "": EMPTY}
SAMPLES = 6


def dataset(folder: Path, captions: list[str] | None, template: PromptTemplate = HUNYUAN_VIDEO) -> Path:
    """Random latents, the same for all captions; None is a dataset without captions."""
    texts = None if captions is None else TextIndex(encoder_sha256="ab" * 32, template=template)
    index = DatasetIndex(frames=5, height=32, width=32, fps=24, vae_sha256="0" * 64, dtype="float32", texts=texts)
    generator = torch.Generator().manual_seed(1)
    with LatentWriter(folder, index) as writer:
        for number in range(SAMPLES):
            latent = torch.randn(16, 2, 4, 4, generator=generator)
            prompts = None
            if writer.texts is not None and captions is not None:
                prompts = writer.texts.refer(captions[number % len(captions)], WORDS.__getitem__)
            writer.append(f"{number}", latent, StartImage(latent[None, :, :1]), prompts=prompts)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captions")
    return {
        "plain": dataset(root / "plain", None),
        "speaks": dataset(root / "speaks", ["speaks"]),
        "mixed": dataset(root / "mixed", ["speaks", "turns left", "blinks"]),
        "image": dataset(root / "image", ["speaks"], HUNYUAN_I2V_CONCAT),
    }


def prompt_file(path: Path, prompt: NullPrompt) -> str:
    save_file(null_prompt_tensors(prompt), path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The prompts as files, a teacher with a guidance embedding, and a generator of two steps."""
    folder = tmp_path_factory.mktemp("files")
    size = {"shift": 5.0, "width": 32, "height": 32, "frames": 5, "fps": 24}
    guided = file_state(hunyuan_shape(refiner_blocks=2, guidance_embed=True))
    save_checkpoint(folder / "guided.safetensors", guided, Recipe(kind="teacher", steps=28, **size), random_prompt())
    few = file_state(hunyuan_shape(refiner_blocks=2), seed=1)
    save_checkpoint(folder / "few.safetensors", few, Recipe(kind="generator", steps=2, **size), random_prompt())
    prompts = {"speaks": SPEAKS, "empty": EMPTY, "null": random_prompt(), "negative": random_prompt(seed=2)}
    named = {name: prompt_file(folder / f"{name}.safetensors", prompt) for name, prompt in prompts.items()}
    return named | {name: str(folder / f"{name}.safetensors") for name in ("guided", "few")}


METHODS: dict[str, dict[str, Any]] = {
    "w2s": {"name": "w2s", "fake_updates": 1, "guidance_scale": 3.0, "supervision": {"weight": 0.25}},
    "dmd2": {"name": "dmd2", "fake_updates": 1, "discriminator": {"optimizer": {"lr": 1e-3}}},
    "one_step": {"name": "one_step", "fake_updates": 1},
    "lcm": {"name": "lcm", "ode_steps": 6},
    "cfg": {"name": "cfg", "scale_min": 1.0, "scale_max": 8.0},
    "sft": {"name": "sft"},
}


def settings(name: str, tree: dict, files: dict[str, str], data: Path, **model: str) -> dict:
    """The configuration of a method on a dataset: a network in fp32, two updates of one sample."""
    tree |= {"method": dict(METHODS[name]), "updates": 2}
    tree["data"] = {"dataset": str(data), "micro_batch": 1}
    if name == "one_step":
        tree["method"]["few_step_generator"] = files["few"]
        tree["schedule"] = {"steps": 1}
    if name == "cfg":
        tree["model"]["teacher"] = files["guided"]
    if name in ("lcm", "cfg", "sft"):
        del tree["fake_optimizer"]
    tree["model"] |= model
    return tree


@pytest.fixture
def train_all(live: Callable[..., Any], tmp_path: Path) -> Callable[[list[dict]], list[list[dict]]]:
    """Trains configurations one after another in one process, and returns the metrics of each."""

    def train(trees: list[dict]) -> list[list[dict]]:
        written = []
        for number, tree in enumerate(trees):
            path = tmp_path / f"tree-{number}.yaml"
            path.write_text(yaml.safe_dump(tree))
            written.append([str(path)])
        done = live(trees[0], then=written[1:])
        assert done.codes == [0], done.said[-6000:]
        return [metrics_of(Path(tree["run"])) for tree in trees]

    return train


@pytest.mark.timeout(600)
def test_every_call_of_every_method_has_the_samples_caption(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    train_all: Callable[..., list[list[dict]]],
    files: dict[str, str],
    folders: dict[str, Path],
) -> None:
    """If all captions are one text, the run equals that with this text as null prompt, bit by bit.

    The null prompt of the captioned run is another text, so any call that uses it would change the metrics.
    """
    trees = []
    for name in METHODS:
        negative = {"negative_prompt": files["negative"]} if name in ("w2s", "cfg") else {}
        for captions in (True, False):
            tree = tiny_config(tmp_path / f"{name}-{captions}")
            data = folders["speaks" if captions else "plain"]
            tree = settings(name, tree, files, data, **negative, null_prompt=files["null" if captions else "speaks"])
            trees.append(tree | {"data": tree["data"] | {"captions": captions}})
    found = train_all(trees)
    for name, captioned, plain in zip(METHODS, found[::2], found[1::2], strict=True):
        assert captioned == plain, name
        assert len(captioned) == 2


@pytest.mark.timeout(600)
def test_runs_with_the_null_prompt_are_as_before(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    train_all: Callable[..., list[list[dict]]],
    files: dict[str, str],
    folders: dict[str, Path],
) -> None:
    """Captions in the dataset change nothing unless the run asks for them."""
    trees = [
        settings("w2s", tiny_config(tmp_path / name), files, folders[name], negative_prompt=files["negative"])
        for name in ("plain", "mixed")
    ]
    trees.append(settings("w2s", tiny_config(tmp_path / "own"), files, folders["mixed"]))
    trees[-1]["data"]["captions"] = True
    plain, mixed, own = train_all(trees)
    assert plain == mixed
    assert own != mixed


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["w2s", "cfg"])
def test_guidance_moves_away_from_the_empty_text(
    name: str,
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    train_all: Callable[..., list[list[dict]]],
    files: dict[str, str],
    folders: dict[str, Path],
) -> None:
    """Without a negative prompt: from the null prompt, or from the empty text with the sample's own image."""

    def tree(run: str, data: str, *, captions: bool, **model: str) -> dict:
        built = settings(name, tiny_config(tmp_path / run), files, folders[data], **model)
        return built | {"data": built["data"] | {"captions": captions}}

    null, speaks, empty = files["null"], files["speaks"], files["empty"]
    text, text_named, image, image_named = train_all(
        [
            tree("text", "speaks", captions=True, null_prompt=null),
            tree("text_named", "plain", captions=False, null_prompt=speaks, negative_prompt=null),
            tree("image", "image", captions=True, null_prompt=null),
            tree("image_named", "plain", captions=False, null_prompt=speaks, negative_prompt=empty),
        ]
    )
    assert text == text_named
    assert image == image_named
    assert text != image


@pytest.mark.timeout(600)
def test_a_batch_of_different_captions_some_of_them_dropped_is_the_mean_of_single_samples(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    train_all: Callable[..., list[list[dict]]],
    teacher_file: Path,
    files: dict[str, str],
    folders: dict[str, Path],
) -> None:
    """The losses of `sft` from their definition, each sample by itself with its own prompt."""
    tree = settings("sft", tiny_config(tmp_path / "run", seed=3), files, folders["mixed"])
    tree["data"] |= {"micro_batch": SAMPLES, "captions": True, "caption_dropout": 0.4}
    tree["generator_optimizer"] = {"lr": 1e-12}  # the second loss, too, is the teacher's
    (rows,) = train_all([tree])
    draws, data, teacher = Draws(3), LatentDataset(folders["mixed"]), load_checkpoint(teacher_file)
    assert teacher.null_prompt is not None
    network, dropped = load_network(teacher), []
    for update, logged in enumerate(rows):
        losses = []
        for position, index in enumerate(draws.sample_indices(update, list(range(SAMPLES)), SAMPLES, SAMPLES)):
            drop = float(torch.rand((), generator=draws.generator("caption dropout", update, position))) < 0.4
            dropped.append(drop)
            caption = ["speaks", "turns left", "blinks"][index % 3]
            prompt = teacher.null_prompt if drop else WORDS[caption]
            batch = data.batch([index])
            sigma = logit_normal_sigma(1, 5.0, draws.generator("level", update, position), 0.0, 1.0)
            eps = draws.noise("loss", update, [position], (16, 2, 4, 4))
            x = (1 - sigma) * batch.latents + sigma * eps
            with torch.no_grad():
                v = network_velocity(network, concat_condition(batch.image_latents, 2), prompt)(x, sigma)
            losses.append(float((v - (eps - batch.latents)).square().mean()))
        assert logged["generator/loss"] == pytest.approx(sum(losses) / SAMPLES, rel=1e-5)
    assert 0 < sum(dropped) < len(dropped)
    assert dropped[:SAMPLES] != dropped[SAMPLES:]


@pytest.mark.timeout(600)
def test_a_resumed_run_drops_the_same_captions_and_exports_its_vocabulary(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    live: Callable[..., Any],
    files: dict[str, str],
    folders: dict[str, Path],
) -> None:
    def tree(name: str, updates: int) -> dict:
        built = settings("w2s", tiny_config(tmp_path / name), files, folders["mixed"])
        built["data"] |= {"micro_batch": 2, "captions": True, "caption_dropout": 0.5}
        built["model"] |= {"mode": "lora", "activation_checkpointing": True}
        return built | {"updates": updates, "checkpoint": {"every": 2, "keep": 4}}

    for config, flags in [(tree("whole", 4), ()), (tree("parts", 2), ()), (tree("parts", 4), ("--resume",))]:
        done = live(config, *flags)
        assert done.codes == [0], done.said[-6000:]
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")
    found = load_lora(tmp_path / "parts/checkpoints/step-000004/generator_lora.safetensors", 128).captions
    assert found.keys() == {"speaks", "turns left", "blinks"}
    assert all(torch.equal(found[name].text_states, WORDS[name].text_states) for name in found)
    fake = load_lora(tmp_path / "parts/checkpoints/step-000004/fake_lora.safetensors", 128)
    assert fake.captions == {}


def test_settings_that_contradict_the_data_are_refused(
    tmp_path: Path, tiny_config: Callable[..., dict], files: dict[str, str], folders: dict[str, Path]
) -> None:
    tree = settings("w2s", tiny_config(tmp_path / "run"), files, folders["plain"])
    with pytest.raises(ConfigError, match=r"model\.negative_prompt.*train with captions .data\.captions=true."):
        parse_config(tree, "test")
    tree["data"]["caption_dropout"] = 0.1
    with pytest.raises(ConfigError, match=r"data\.caption_dropout is 0\.1, but the run trains without captions"):
        parse_config(tree, "test")
    tree["data"]["captions"] = True
    assert isinstance(parse_config(tree, "test").method, MatchingConfig)
    with pytest.raises(DatasetError, match=r"data\.captions is true, but .* has no captions.*--text-encoder"):
        check_inputs(parse_config(tree, "test"), resume=False)


def test_captions_of_another_text_encoder_are_refused(
    tmp_path: Path, tiny_config: Callable[..., dict], live: Callable[..., Any], files: dict[str, str]
) -> None:
    folder = tmp_path / "data"
    index = DatasetIndex(
        frames=5, height=32, width=32, fps=24, vae_sha256="0" * 64, dtype="float32",
        texts=TextIndex(encoder_sha256="cd" * 32),
    )  # fmt: skip
    with LatentWriter(folder, index) as writer:
        assert writer.texts is not None
        prompts = writer.texts.refer("speaks", lambda text: random_prompt(text_dim=8))
        latent = torch.zeros(16, 2, 4, 4)
        writer.append("0", latent, StartImage(latent[None, :, :1]), prompts=prompts)
    tree = settings("sft", tiny_config(tmp_path / "run"), files, folder)
    tree["data"]["captions"] = True
    done = live(tree)
    assert done.codes == [2]
    assert "widths (8, 768), but the null prompt has (16, 768)" in done.said


def test_captions_for_the_other_kind_of_start_image_are_refused(
    tmp_path: Path, tiny_config: Callable[..., dict], files: dict[str, str], folders: dict[str, Path]
) -> None:
    tree = settings("sft", tiny_config(tmp_path / "run"), files, folders["image"])
    tree["data"]["captions"] = True
    config, data = parse_config(tree, "test"), LatentDataset(folders["image"])
    assert batch_prompts(config, data, CONCAT, random_prompt(), Draws(0)) is not None
    with pytest.raises(DatasetError, match=r"HunyuanVideo-I2V concat.*token_replace.*hunyuan_i2v_token_replace"):
        batch_prompts(config, data, TOKEN_REPLACE, random_prompt(), Draws(0))


@pytest.mark.parametrize("template", TITLES)
def test_each_template_belongs_to_the_models_that_were_trained_with_it(
    template: PromptTemplate, tmp_path: Path, tiny_config: Callable[..., dict], files: dict[str, str]
) -> None:
    data = LatentDataset(dataset(tmp_path / "data", ["speaks"], template=template))
    tree = settings("sft", tiny_config(tmp_path / "run"), files, data.folder)
    tree["data"]["captions"] = True
    fitting = []
    for family in (CONCAT, TOKEN_REPLACE):
        try:
            batch_prompts(parse_config(tree, "test"), data, family, random_prompt(), Draws(0))
        except DatasetError:
            continue
        fitting.append(family.i2v_mode)
    both = ["concat", "token_replace"]
    served = {"hunyuan_video": both, "hunyuan_i2v_token_replace": both[1:]}
    # Latents of Wan are refused before: they are of another architecture.
    assert fitting == served.get(template, both[:1])
