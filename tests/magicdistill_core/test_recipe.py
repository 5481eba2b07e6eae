import json

import pytest
from pydantic import ValidationError

from magicdistill_core.errors import CheckpointError
from magicdistill_core.recipe import METADATA_KEY, Recipe

BASICS = {"kind": "generator", "steps": 4, "shift": 5.0, "width": 96, "height": 96, "frames": 17, "fps": 24.0}


def test_every_field_is_stored_in_the_metadata() -> None:
    recipe = Recipe.model_validate(
        BASICS
        | {"sampler": "renoise", "method": "w2s", "training_step": 600, "a_weak": 0.25, "a_strong": 1.0}
        | {"prompt_template": "magic141", "image_in_noise": 0.001, "dropped_frames": 4}
        | {"teacher_hash": "ab", "base_hash": "cd", "base_kind": "folder", "lora_rank": 64, "lora_alpha": 32.0}
    )
    metadata = recipe.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert Recipe.from_metadata(metadata) == recipe
    assert json.loads(metadata[METADATA_KEY])["family"] == "hunyuan_video"


def test_fields_that_earlier_versions_do_not_know_are_stored_only_if_they_are_used() -> None:
    stored = json.loads(Recipe.model_validate(BASICS).to_metadata()[METADATA_KEY])
    assert not {"prompt_template", "image_in_noise", "dropped_frames"} & stored.keys()


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_of_another_program_has_no_recipe(metadata: dict[str, str] | None) -> None:
    assert Recipe.from_metadata(metadata) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"sampler": "heun"}, "sampler"),
        ({"family": "cogvideo"}, "family"),
        ({"format_version": "x"}, "format_version"),
        ({"shift": "five"}, "shift"),
    ],
)
def test_invalid_fields_are_named(change: dict[str, object], named: str) -> None:
    text = json.dumps(BASICS | change)
    with pytest.raises(CheckpointError, match=rf"recipe in x\.safetensors .*{named}.*MagicDistillation"):
        Recipe.from_metadata({METADATA_KEY: text}, "x.safetensors")


def test_invalid_json_is_an_error_and_recipes_are_immutable() -> None:
    with pytest.raises(CheckpointError, match=r"recipe in .*JSON"):
        Recipe.from_metadata({METADATA_KEY: "{"})
    with pytest.raises(ValidationError):
        Recipe.model_validate(BASICS).steps = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 10**12}, "steps.*1000000000000"),
        ({"width": 10**9}, "width.*1000000000"),
        ({"height": 100}, "height of 100.* 96"),
        ({"frames": 18}, "18 frames.* 17 or 21"),
        ({"frames": 10**6 + 1}, "frames"),
        ({"shift": float("inf")}, "shift.*finite"),
        ({"shift": float("nan")}, "shift.*finite"),
        ({"shift": 1e9}, "shift.*1000000000"),
        ({"fps": float("inf")}, "fps.*finite"),
        ({"fps": 1e300}, "fps"),
        ({"guidance_scale": 1e9}, "guidance_scale"),
        ({"dropped_frames": 17}, "dropped_frames is 17.*none of 17 frames"),
        ({"image_in_noise": 1.0}, "image_in_noise"),
        ({"prompt_template": "flux"}, "prompt_template.*flux"),
        ({"a_weak": float("-inf")}, "a_weak.*finite"),
        ({"lora_alpha": float("inf")}, "lora_alpha.*finite"),
    ],
)
def test_values_that_cannot_be_sampled_with_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"recipe in x .*{named}"):
        Recipe.from_metadata({METADATA_KEY: json.dumps(BASICS | change)}, "x")


def test_fields_of_a_newer_version_are_kept_and_named() -> None:
    newer = {"sigma_noise": 0.5, "blocks": [1, {"a": None}], "nothing": None}
    recipe = Recipe.from_metadata({METADATA_KEY: json.dumps(BASICS | newer)})
    assert recipe is not None
    assert recipe.unknown_fields == ("blocks", "nothing", "sigma_noise")
    changed = recipe.model_copy(update={"training_step": 7})
    stored = json.loads(changed.to_metadata()[METADATA_KEY])
    assert {name: stored[name] for name in newer} == newer
    assert (stored["training_step"], stored["steps"]) == (7, 4)
    assert Recipe.from_metadata(changed.to_metadata()) == changed
    assert Recipe.model_validate(BASICS).unknown_fields == ()


def test_only_a_newer_format_is_refused_as_newer() -> None:
    text = json.dumps(BASICS | {"format_version": 2, "sampler": "new"})
    with pytest.raises(CheckpointError, match=r"recipe in x .*newer version.*Update"):
        Recipe.from_metadata({METADATA_KEY: text}, "x")
    with pytest.raises(CheckpointError, match=r"format_version.*found 0") as refused:
        Recipe.from_metadata({METADATA_KEY: json.dumps(BASICS | {"format_version": 0})}, "x")
    assert "newer" not in str(refused.value)
