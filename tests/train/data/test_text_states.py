"""Text states in a dataset: each caption is stored once, and datasets without captions are as before."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train.data.dataset_writer as dataset_writer
from magicdistill_core.captions import MAX_CAPTIONS
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.prompt_templates import HUNYUAN_I2V_CONCAT
from magicdistill_core.safetensors_file import write_safetensors
from tests.makers import random_prompt
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError, DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.data.text_index import TextIndex
from train.run.preflight import dataset_digest

SHAPE = (16, 2, 4, 4)
TEXTS = TextIndex(encoder_sha256="ab" * 32)


def index(texts: TextIndex | None = TEXTS) -> DatasetIndex:
    return DatasetIndex(frames=5, height=32, width=32, fps=24.0, dtype="float32", vae_sha256="aa", texts=texts)


class Encoder:
    """Encodes a text by its words, with the words' numbers as states, and counts its calls."""

    def __init__(self, image: float = 0.0) -> None:
        self.seen: list[str] = []
        self.image = image

    def __call__(self, text: str) -> NullPrompt:
        self.seen.append(text)
        words = [sum(map(ord, word)) / 1000 for word in text.split()]
        states = torch.tensor([[[word, self.image] for word in (self.image, *words)]])
        return NullPrompt(states, torch.tensor([[float(len(words)), self.image, 1.0]]))


def latent(number: int) -> torch.Tensor:
    return torch.full(SHAPE, float(number))


def add(writer: LatentWriter, key: str, caption: str, encode: Callable[[str], NullPrompt]) -> None:
    assert writer.texts is not None
    number = len(writer)
    start = StartImage(latent(number)[None, :, :1])
    writer.append(key, latent(number), start, prompts=writer.texts.refer(caption, encode))


@pytest.fixture
def two_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_writer, "_SHARD_SAMPLES", 2)


@pytest.mark.usefixtures("two_a_shard")
def test_each_caption_is_encoded_and_stored_once_also_when_the_dataset_is_continued(tmp_path: Path) -> None:
    captions = ["turns left", "speaks", "turns left", "", "speaks", "turns right and speaks"]
    encode, again = Encoder(), Encoder()
    with LatentWriter(tmp_path, index()) as writer:
        for number, caption in enumerate(captions[:3]):
            add(writer, f"clip-{number}#0", caption, encode)
    with LatentWriter(tmp_path, index()) as writer:
        assert writer.captions_of("clip-1") == {"speaks"}
        assert writer.captions_of("other") == set()
        for number, caption in enumerate(captions[3:], 3):
            add(writer, f"clip-{number}#0", caption, again)
    assert encode.seen == ["turns left", "speaks"]
    assert again.seen == ["", "turns right and speaks"]
    data = LatentDataset(tmp_path)
    assert data.texts is not None
    rows = sum(len(load_file(file)["text_states"]) for file in tmp_path.glob("text-*.safetensors"))
    assert rows == sum(1 + len(caption.split()) for caption in set(captions))
    assert (data.texts.text_dim, data.texts.pooled_dim, data.texts.longest) == (2, 3, 5)
    assert [data.texts.caption(number) for number in range(6)] == captions
    for number in (5, 0, 4, 3):
        found, expected = data.texts.prompt(number), Encoder()(captions[number])
        assert found is not None
        assert torch.equal(found.text_states, expected.text_states)
        assert found.pooled is not None
        assert expected.pooled is not None
        assert torch.equal(found.pooled, expected.pooled)
        assert data.texts.prompt(number, empty=True) is None


def test_few_text_states_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each image are larger than the latents of a small clip, and must not wait for a full shard."""
    large = NullPrompt(torch.rand(1, 500, 4), torch.rand(1, 4))  # 8 kB of float32
    monkeypatch.setattr(dataset_writer, "_SHARD_BYTES", 40_000)  # 13 of these latents
    with LatentWriter(tmp_path, index(TEXTS.model_copy(update={"template": HUNYUAN_I2V_CONCAT}))) as writer:
        assert writer.texts is not None
        for number in range(5):
            add(writer, f"clip-{number}#0", "speaks", lambda text: large)
            assert writer.texts.pending_bytes < 40_000
    data = LatentDataset(tmp_path)
    assert [len(shard.samples) for shard in data.index.shards] == [3, 2]
    assert data.texts is not None
    for number in range(5):
        for empty in (False, True):
            found = data.texts.prompt(number, empty=empty)
            assert found is not None
            assert torch.equal(found.text_states, large.text_states)


@pytest.mark.usefixtures("two_a_shard")
def test_prompts_that_depend_on_the_image_belong_to_their_sample(tmp_path: Path) -> None:
    captions = ["speaks", "speaks", ""]
    with LatentWriter(tmp_path, index(TEXTS.model_copy(update={"template": HUNYUAN_I2V_CONCAT}))) as writer:
        for number, caption in enumerate(captions):
            add(writer, f"clip-{number}#0", caption, Encoder(image=number + 1.0))
    texts = LatentDataset(tmp_path).texts
    assert texts is not None
    for number, caption in enumerate(captions):
        for empty in (False, True):
            found = texts.prompt(number, empty=empty)
            assert found is not None
            expected = Encoder(image=number + 1.0)("" if empty else caption)
            assert torch.equal(found.text_states, expected.text_states)
    assert texts.vocabulary == {}


def test_a_small_vocabulary_is_offered_for_model_files(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        add(writer, "none#0", "", Encoder())
        for number in range(MAX_CAPTIONS):
            add(writer, f"{number}#0", f"caption {number}", Encoder())
    texts = LatentDataset(tmp_path).texts
    assert texts is not None
    assert texts.vocabulary.keys() == {f"caption {number}" for number in range(MAX_CAPTIONS)}
    with LatentWriter(tmp_path, index()) as writer:
        add(writer, "more#0", "one more", Encoder())
    texts = LatentDataset(tmp_path).texts
    assert texts is not None
    assert texts.vocabulary == {}


def test_a_dataset_without_captions_is_stored_as_before(tmp_path: Path) -> None:
    """The index of earlier versions, field by field, and the digest by which a run recognises it."""
    with LatentWriter(tmp_path, index(None)) as writer:
        writer.append("clip#0", latent(1), StartImage(latent(1)[None, :, :1]))
    written = json.loads((tmp_path / "dataset.json").read_text())
    size = (tmp_path / "shard-00000.safetensors").stat().st_size
    shards = [{"file": "shard-00000.safetensors", "bytes": size, "samples": ["clip#0"]}]
    settings = {"format_version": 1, "family": "hunyuan_video", "frames": 5, "height": 32, "width": 32, "fps": 24.0}
    settings |= {"stride": None, "dtype": "float32", "vae_sha256": "aa", "image_encoder_sha256": None}
    assert written == settings | {"shards": shards, "sources": []}
    assert list(tmp_path.glob("text-*")) == []
    data = LatentDataset(tmp_path)
    assert data.texts is None
    # What the digest covered before there were captions.
    covered = {name: value for name, value in settings.items() if name != "format_version"}
    text = json.dumps(covered | {"shards": [[size, "clip#0"]]}, sort_keys=True)
    assert dataset_digest(data.index) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_covers_captions_and_their_samples(tmp_path: Path) -> None:
    digests = set()
    for number, captions in enumerate((["a", "b"], ["b", "a"], ["a", "a"], ["a", "c"])):
        folder = tmp_path / str(number)
        with LatentWriter(folder, index()) as writer:
            for place, caption in enumerate(captions):
                add(writer, f"{place}#0", caption, Encoder())
        digests.add(dataset_digest(LatentDataset(folder).index))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (None, "text encoder abababababab with template unknown .now: none."),
        (
            TextIndex(encoder_sha256="cd" * 32),
            "template unknown .now: cdcdcdcdcdcd with template unknown.",
        ),
        (
            TEXTS.model_copy(update={"template": HUNYUAN_I2V_CONCAT}),
            "now: abababababab with template hunyuan_i2v_concat",
        ),
    ],
)
def test_a_dataset_is_continued_only_with_its_text_encoder(texts: TextIndex | None, match: str, tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        add(writer, "a#0", "x", Encoder())
    with pytest.raises(DatasetError, match=match):
        LatentWriter(tmp_path, index(texts))


def test_samples_without_a_caption_and_prompts_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        add(writer, "a#0", "x", Encoder())
        with pytest.raises(ValueError, match="b#0 has no caption, unlike the dataset"):
            writer.append("b#0", latent(1), StartImage(latent(1)[None, :, :1]))
        with pytest.raises(ValueError, match=r"1 NaN .*caption 'y'"):
            add(writer, "b#0", "y", lambda text: NullPrompt(torch.tensor([[[1.0, torch.nan]]]), None))
        with pytest.raises(ValueError, match=r"expected .1, tokens, width. with the width of the other captions"):
            add(writer, "b#0", "z", lambda text: random_prompt(text_dim=3, pooled_dim=3))
    assert len(LatentDataset(tmp_path)) == 1


def test_damaged_text_states_are_named(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, index()) as writer:
        add(writer, "a#0", "turns left", Encoder())
    file = tmp_path / "text-00000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"File text-00000\.safetensors .*truncated"):
        LatentDataset(tmp_path)
    file.unlink()
    with pytest.raises(DatasetError, match=r"File text-00000\.safetensors .*missing"):
        LatentDataset(tmp_path)
    file.write_bytes(whole)
    stored = load_file(file)
    write_safetensors(file, stored | {"text_states": stored["text_states"] * torch.nan}, {})
    texts = LatentDataset(tmp_path).texts
    assert texts is not None
    with pytest.raises(DatasetError, match=r"The caption 'turns left' of .*NaN.*Prepare the dataset again"):
        texts.prompt(0)
    written = json.loads((tmp_path / "dataset.json").read_text())
    written["shards"][0]["prompts"][0]["caption"] = 7
    (tmp_path / "dataset.json").write_text(json.dumps(written))
    with pytest.raises(DatasetError, match="name the prompt 7, but there are 1 prompts"):
        LatentDataset(tmp_path)
    written["shards"][0]["prompts"] = []
    (tmp_path / "dataset.json").write_text(json.dumps(written))
    with pytest.raises(DatasetError, match="0 captions for its 1 samples"):
        LatentDataset(tmp_path)
