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
        | {"teacher_hash": "ab", "base_hash": "cd", "base_kind": "folder", "lora_rank": 64, "lora_alpha": 32.0}
    )
    metadata = recipe.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert Recipe.from_metadata(metadata) == recipe
    assert json.loads(metadata[METADATA_KEY])["family"] == "hunyuan_video"


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_of_another_program_has_no_recipe(metadata: dict[str, str] | None) -> None:
    assert Recipe.from_metadata(metadata) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"strps": 4}, "strps"),
        ({"steps": 0}, "steps"),
        ({"sampler": "heun"}, "sampler"),
        ({"family": "cogvideo"}, "family"),
        ({"format_version": 2}, "format_version"),
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
