"""Model caption: the captions of model files and LoRAs become the text conditioning that the trainer used."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.families.wan import IMAGE_TO_VIDEO, TEXT_TOKENS
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.lora_file import save_lora
from magicdistill_core.quantise import save_quantised
from tests.makers import StockSide, random_prompt

from .batches import WAN_SHAPE

pytestmark = pytest.mark.slow

CAPTIONS = {"turns left": random_prompt(4, 32, seed=1), "Speaks. module.": random_prompt(6, 32, seed=2)}


@pytest.fixture(scope="module")
def answers(
    tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Tensor]]:
    """Write all files, run all jobs in one ComfyUI process, and return the answers by job."""
    folder = tmp_path_factory.mktemp("captions")
    network = tiny.network(tiny.shape())
    state = diffusers_to_file(HUNYUAN_VIDEO, network.state_dict())
    model, int8, plain = (folder / f"{name}.safetensors" for name in ("model", "int8", "plain"))
    save_checkpoint(model, state, tiny.recipe("generator"), tiny.prompt(), captions=CAPTIONS)
    save_quantised(int8, load_checkpoint(model))
    save_checkpoint(plain, state, tiny.recipe("teacher"), tiny.prompt())
    lora = folder / "lora.safetensors"
    branches = to_file_layout(HUNYUAN_VIDEO, tiny.branches(network), 128)
    own = {"blinks": random_prompt(3, 32, seed=3)}
    save_lora(lora, branches, tiny.recipe("generator_lora"), None, own)
    wan = folder / "wan.safetensors"
    weights = diffusers_to_file(WAN, tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO).state_dict())
    short = random_prompt(5, WAN_SHAPE.text_dim, None)
    save_checkpoint(wan, weights, tiny.recipe("generator", family="wan"), None, captions={"speaks": short})
    wide = folder / "wide.safetensors"
    save_checkpoint(wide, state, tiny.recipe("generator"), None, captions={"wide": random_prompt(3, 64)})
    jobs = {
        "by name": {"model": model, "caption": "turns left"},
        "other capitals": {"model": model, "caption": " speaks. MODULE. "},
        "null prompt": {"model": model, "caption": ""},
        "unknown": {"model": model, "caption": "sings"},
        "int8": {"model": int8, "caption": "turns left"},
        "no captions": {"model": plain, "caption": "turns left"},
        "lora": {"model": plain, "lora": lora, "caption": "blinks"},
        "lora replaces": {"model": model, "lora": lora, "caption": "turns left"},
        "stock loader": {"model": model, "caption": "turns left", "loader": "stock"},
        "wan": {"model": wan, "caption": "speaks"},
        "wan without null prompt": {"model": wan, "caption": ""},
        "wrong width": {"model": wide, "caption": "wide"},
    }
    given = [{"run": "model_caption"} | {key: str(value) for key, value in job.items()} for job in jobs.values()]
    return dict(zip(jobs, stock_side(given), strict=True))


def said(answer: dict[str, Tensor]) -> str:
    """The text under the node, or its error."""
    return bytes(answer["said"].tolist()).decode()


@pytest.mark.parametrize(
    ("job", "caption"), [("by name", "turns left"), ("other capitals", "Speaks. module."), ("int8", "turns left")]
)
def test_a_caption_is_the_conditioning_of_the_training(
    job: str, caption: str, answers: dict[str, dict[str, Tensor]]
) -> None:
    answer, expected = answers[job], CAPTIONS[caption]
    assert torch.equal(answer["text"], expected.text_states)
    assert expected.pooled is not None
    assert torch.equal(answer["pooled"], expected.pooled)
    assert "Captions of this model: Speaks. module.; turns left" in said(answer)


def test_no_caption_is_the_null_prompt(answers: dict[str, dict[str, Tensor]], tiny: SimpleNamespace) -> None:
    assert torch.equal(answers["null prompt"]["text"], tiny.prompt().text_states)
    assert said(answers["null prompt"]).startswith("null prompt")


def test_a_lora_brings_its_own_captions(answers: dict[str, dict[str, Tensor]]) -> None:
    assert torch.equal(answers["lora"]["text"], random_prompt(3, 32, seed=3).text_states)
    assert "has no caption 'turns left'. Its captions are: blinks" in said(answers["lora replaces"])


def test_wan_pads_captions_as_its_training_does(answers: dict[str, dict[str, Tensor]]) -> None:
    text, expected = answers["wan"]["text"], random_prompt(5, WAN_SHAPE.text_dim, None).text_states
    assert text.shape[1] == TEXT_TOKENS
    assert torch.equal(text[:, :5], expected)
    assert not text[:, 5:].any()
    assert "pooled" not in answers["wan"]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("unknown", "has no caption 'sings'. Its captions are: Speaks. module.; turns left"),
        ("no captions", "The model carries no captions"),
        ("stock loader", "comes from another loader"),
        ("wan without null prompt", "means the null prompt, but the model's file carries none"),
        ("wrong width", "The caption 'wide' in wide.safetensors cannot be used"),
    ],
)
def test_errors_say_what_to_do(job: str, words: str, answers: dict[str, dict[str, Tensor]]) -> None:
    assert "text" not in answers[job]
    assert words in said(answers[job])
