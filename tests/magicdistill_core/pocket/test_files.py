from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.hashes import file_sha256
from magicdistill_core.lora_file import load_lora
from magicdistill_core.pocket import files
from magicdistill_core.pocket.vocabulary import DIRECTIONS, caption_of, prompt_of
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_metadata
from tests.makers import skip_without_weights

NAMED = {value for value in vars(files).values() if isinstance(value, Path) and value.suffix}


def test_the_weights_folder_holds_the_named_files_and_nothing_else() -> None:
    """The reader may be missing: a command makes it, and nothing but measures needs it."""
    skip_without_weights()
    found = {path for path in files.WEIGHTS.rglob("*") if path.is_file()}
    assert found | {files.READER} == NAMED


def test_the_models_are_what_their_names_say() -> None:
    skip_without_weights(files.ONE_STEP)
    found = {}
    for file in (files.TEACHER, files.GENERATOR, files.ONE_STEP):
        checkpoint = load_checkpoint(file)
        assert checkpoint.null_prompt is not None
        assert checkpoint.recipe is not None
        assert (checkpoint.recipe.width, checkpoint.recipe.height) == (files.SIZE, files.SIZE)
        found[file] = (checkpoint.recipe.kind, checkpoint.recipe.steps)
    assert found == {
        files.TEACHER: ("teacher", 28),
        files.GENERATOR: ("generator", 4),
        files.ONE_STEP: ("generator", 1),
    }
    lora = Recipe.from_metadata(read_metadata(files.FAKE_LORA))
    assert lora is not None
    assert lora.kind == "fake_lora"


@pytest.mark.parametrize(
    ("file", "kind", "steps"),
    [(files.CAPTIONED_LORA, "teacher_lora", 28), (files.CAPTIONED_4STEP_LORA, "generator_lora", 4)],
    ids=lambda value: value.stem if isinstance(value, Path) else None,
)
def test_captioned_loras_belong_to_the_shipped_teacher_and_carry_the_vocabulary(
    file: Path, kind: str, steps: int
) -> None:
    skip_without_weights(file)
    lora = load_lora(file, load_checkpoint(files.TEACHER).shape.hidden)
    assert lora.recipe is not None
    assert (lora.recipe.kind, lora.recipe.steps) == (kind, steps)
    assert lora.recipe.base_hash == file_sha256(files.TEACHER)
    assert lora.null_prompt is not None
    assert lora.captions.keys() == {caption_of(direction) for direction in DIRECTIONS}
    for direction in DIRECTIONS:
        assert torch.equal(lora.captions[caption_of(direction)].text_states, prompt_of(direction).text_states)
