from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.hashes import file_sha256
from magicdistill_core.lora_file import load_lora
from magicdistill_core.pocket import files
from magicdistill_core.pocket.vocabulary import DIRECTIONS, caption_of, prompt_of
from tests.makers import skip_without_weights

NAMED = {value for value in vars(files).values() if isinstance(value, Path) and value.suffix}


def test_the_weights_folder_holds_the_named_files_and_nothing_else() -> None:
    """The reader may be missing: a command makes it, and nothing but measures needs it."""
    skip_without_weights()
    found = {path for path in files.WEIGHTS.rglob("*") if path.is_file()}
    assert found | {files.READER} == NAMED


def test_the_models_are_what_their_names_say() -> None:
    teacher = load_checkpoint(files.TEACHER)
    assert teacher.null_prompt is not None
    recipes = {files.TEACHER: teacher.recipe}
    for file in (files.FOUR_STEP_LORA, files.ONE_STEP_LORA, files.FAKE_LORA):
        lora = load_lora(file, teacher.shape.hidden)
        recipes[file] = lora.recipe
        # Only a LoRA that generates has a prompt. Both belong to the shipped teacher.
        assert (lora.null_prompt is None) == (file == files.FAKE_LORA)
        assert lora.recipe is not None
        assert lora.recipe.base_hash == file_sha256(files.TEACHER)
    found = {}
    for file, recipe in recipes.items():
        assert recipe is not None
        assert (recipe.width, recipe.height) == (files.SIZE, files.SIZE)
        found[file] = (recipe.kind, recipe.steps)
    assert found == {
        files.TEACHER: ("teacher", 28),
        files.FOUR_STEP_LORA: ("generator_lora", 4),
        files.ONE_STEP_LORA: ("generator_lora", 1),
        files.FAKE_LORA: ("fake_lora", 4),
    }


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
