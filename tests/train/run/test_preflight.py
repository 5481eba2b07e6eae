"""Checks before anything is loaded: the input files of a configuration, and the inputs with which a run started."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train.run.preflight
import train.run.trainer
from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError, MagicDistillError
from magicdistill_core.families.base import StartImage
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_metadata
from train.config.reading import parse_config
from train.config.training import TrainConfig
from train.data.dataset_index import Content, DatasetIndex, Shard
from train.data.dataset_writer import LatentWriter
from train.networks.network import load_network
from train.networks.weights import merge_lora
from train.run.preflight import check_inputs, dataset_digest, record_inputs

Config = Callable[..., dict]


@pytest.fixture
def pipelines(tmp_path: Path, teacher_file: Path) -> tuple[Path, Path, Path]:
    """Two pipelines whose transformers differ in one weight, and a null prompt for both."""
    teacher = load_checkpoint(teacher_file)
    network = load_network(teacher)
    for name in ("first", "second"):
        network.save_pretrained(tmp_path / name / "transformer")
        (tmp_path / name / "model_index.json").write_text('{"_class_name": "HunyuanVideoImageToVideoPipeline"}')
        next(network.parameters()).data.view(-1)[0] += 1
    save_file(null_prompt_tensors(teacher.null_prompt), tmp_path / "prompt.safetensors")
    return tmp_path / "first", tmp_path / "second", tmp_path / "prompt.safetensors"


def of_pipeline(tree: dict, pipeline: Path, prompt: Path) -> dict:
    return tree | {"model": tree["model"] | {"mode": "lora", "teacher": str(pipeline), "null_prompt": str(prompt)}}


def begun(config: TrainConfig) -> dict:
    """Start a run and return its record."""
    record_inputs(config, check_inputs(config, resume=False))
    return json.loads((config.run / "run.json").read_text())


def dataset(folder: Path, *, first: str = "a", fps: float = 24.0, side: int = 32, vae: str = "0" * 64) -> Path:
    index = DatasetIndex(frames=5, height=side, width=side, fps=fps, vae_sha256=vae, dtype="float32")
    with LatentWriter(folder, index) as writer:
        for key in (first, "b"):
            latent = torch.zeros(16, 2, side // 8, side // 8)
            writer.append(key, latent, StartImage(latent[None, :, :1]))
    return folder


def test_a_run_resumes_on_its_own_pipeline_only(
    pipelines: tuple[Path, Path, Path], tmp_path: Path, tiny_config: Config
) -> None:
    first, second, prompt = pipelines
    config = parse_config(of_pipeline(tiny_config(tmp_path / "run"), first, prompt), "test")
    begun(config)
    check_inputs(config, resume=True)
    other = parse_config(of_pipeline(tiny_config(tmp_path / "run"), second, prompt), "test")
    with pytest.raises(CheckpointError, match=f"teacher other than {second}.*sha256"):
        check_inputs(other, resume=True)


def test_a_lora_trained_on_a_pipeline_is_merged_only_into_it(
    pipelines: tuple[Path, Path, Path], tmp_path: Path, tiny_config: Config, live: Callable
) -> None:
    first, second, prompt = pipelines
    done = live(of_pipeline(tiny_config(tmp_path / "run", updates=1), first, prompt))
    assert done.codes == [0], done.said
    lora = tmp_path / "run" / "checkpoints" / "step-000001" / "generator_lora.safetensors"
    recipe = Recipe.from_metadata(read_metadata(lora), lora.name)
    assert recipe is not None
    assert (recipe.base_hash, recipe.base_kind) == (weights_sha256(first), "folder")
    merged = merge_lora(first, lora).recipe
    assert merged is not None
    assert (merged.base_hash, merged.base_kind) == (None, None)
    with pytest.raises(CheckpointError, match=f"{lora.name} .*sha256.*{second.name}"):
        merge_lora(second, lora)


@pytest.mark.parametrize("change", [{"first": "c"}, {"fps": 12.0}, {"side": 48}, {"vae": "1" * 64}])
def test_another_dataset_of_equal_length_is_refused(change: dict, tmp_path: Path, tiny_config: Config) -> None:
    def config(data: Path) -> TrainConfig:
        return parse_config(tiny_config(tmp_path / "run", data={"dataset": str(data)}), "test")

    begun(config(dataset(tmp_path / "data")))
    other = config(dataset(tmp_path / "other", **change))
    with pytest.raises(CheckpointError, match=r"dataset other than .*/other "):
        check_inputs(other, resume=True)
    (tmp_path / "data").rename(tmp_path / "moved")
    check_inputs(config(tmp_path / "moved"), resume=True)


@pytest.mark.parametrize(
    ("section", "change", "match"),
    [
        ("model", {"teacher": "NONE"}, r"model\.teacher is .*/NONE,"),
        ("model", {"null_prompt": "NONE"}, "null_prompt is .*NONE.*magicdistill encode-prompt PIPELINE --out .*NONE"),
        ("model", {"negative_prompt": "NONE"}, "negative_prompt is .*NONE.*encode-prompt .*NONE .*--prompt"),
        ("data", {"dataset": "NONE"}, r"/NONE .*dataset\.json.*magicdistill prepare"),
        ("validation", {"every": 1, "vae": "NONE"}, r"validation\.vae is .*/NONE,.*validation\.every=0"),
    ],
)
def test_missing_inputs_are_named_before_anything_is_loaded(
    section: str, change: dict, match: str, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny_config(tmp_path / "run")
    change = {key: str(tmp_path / value) if value == "NONE" else value for key, value in change.items()}
    tree[section] = tree[section] | change
    if "negative_prompt" in change:
        tree["method"] = {"fake_updates": 2, "guidance_scale": 2.0}
    monkeypatch.setattr(train.run.trainer, "load_teacher", lambda config: pytest.fail("the teacher was loaded"))
    with pytest.raises(MagicDistillError, match=match):
        train.run.trainer.train(parse_config(tree, "test"))
    assert not (tmp_path / "run").exists()


def test_a_missing_null_prompt_names_the_command_that_makes_one(
    pipelines: tuple[Path, Path, Path], tmp_path: Path, tiny_config: Config
) -> None:
    tree = of_pipeline(tiny_config(tmp_path / "run"), *pipelines[1:])
    tree["model"]["null_prompt"] = None
    with pytest.raises(CheckpointError, match=r"model\.null_prompt.*magicdistill encode-prompt PIPELINE --out"):
        check_inputs(parse_config(tree, "test"), resume=False)


def test_all_processes_end_if_a_file_is_missing_on_one(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.distributed, "first_error", lambda error: error or "its disk is not mounted")
    with pytest.raises(ConfigError, match=r"Another process .*: its disk is not mounted"):
        check_inputs(parse_config(tiny_config(tmp_path / "run"), "test"), resume=False)


def test_an_unusable_vae_is_refused_before_networks_are_built(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.run.trainer, "build_networks", lambda *given: pytest.fail("networks were built"))
    vae = tmp_path / "vae"
    vae.mkdir()
    (vae / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    tree = tiny_config(tmp_path / "run", validation={"every": 1, "vae": str(vae)})
    with pytest.raises(CheckpointError, match=r"/vae .*AutoencoderKL"):
        train.run.trainer.train(parse_config(tree, "test"))
    # The same error on a process that does not load the VAE itself.
    monkeypatch.setattr(train.watch.validation, "is_main", lambda: False)
    answers = iter([None, "The VAE cannot be used."])
    monkeypatch.setattr(train.distributed, "first_error", lambda error: error or next(answers))
    with pytest.raises(ConfigError, match=r"Another process .*: The VAE cannot be used"):
        train.run.trainer.train(parse_config(tree, "test"))
    assert not (tmp_path / "run").exists()


def test_the_digest_covers_the_videos_contents_and_stays_for_earlier_datasets() -> None:
    shard = Shard(file="a", bytes=3, samples=["x#0"])
    settings = {"frames": 5, "height": 32, "width": 32, "fps": 24, "vae_sha256": "0" * 64, "dtype": "float32"}
    earlier = DatasetIndex(**settings, shards=[shard], sources=["x"])  # type: ignore[arg-type]
    # The value that runs of earlier versions have stored.
    assert dataset_digest(earlier) == "aa04aada40530e7b5647dcb7c77b090c26447ef737f2f8f61fc6e00d8cb2791a"
    digests = {
        dataset_digest(earlier.model_copy(update={"contents": {"x": Content(bytes=9, sha256=sha256)}}))
        for sha256 in ("00", "11")
    }
    assert len(digests | {dataset_digest(earlier)}) == 3
