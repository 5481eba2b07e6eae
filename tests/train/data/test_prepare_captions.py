"""Preparation of a dataset with captions, with a small text encoder in place of a release's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train.data.prepare as prepare_module
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.geometry import frames_to_unit
from magicdistill_core.media.video import read_video, resize_crop
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.prompt_templates import HUNYUAN_I2V_CONCAT, HUNYUAN_VIDEO, WAN, PromptTemplate, needs_image
from train.data.captions import CaptionError
from train.data.dataset import LatentDataset
from train.data.encoders import load_text_encoder
from train.data.prepare import PrepareReport, prepare


class SmallEncoder:
    """An embedding of letters, and of the image's mean colour if it sees the image."""

    def __init__(self, template: PromptTemplate = HUNYUAN_VIDEO) -> None:
        self.template = template
        self.seen: list[str] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.letters, self.colours = nn.Embedding(128, 6), nn.Linear(3, 6)

    @torch.no_grad()
    def encode(self, caption: str, image: Tensor | None = None, /) -> NullPrompt:
        self.seen.append(caption)
        if len(caption.split()) > 100:
            raise MagicDistillError(f"It has {len(caption.split())} words, expected at most 100. Shorten it.")
        states = self.letters(torch.tensor([[*map(ord, f"{caption}.")]]))
        assert (image is not None) == needs_image(self.template)
        if image is not None:
            states = torch.cat([self.colours(image.mean(dim=(2, 3)))[:, None], states], dim=1)
        return NullPrompt(states, states.mean(dim=1))


def clip(path: Path, seed: int, frames: int = 11) -> None:
    ground = torch.randint(0, 256, (1, 40, 72, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, torch.cat([ground.roll(2 * n, dims=2) for n in range(frames)]), 12.0)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        clip(tmp_path / "videos" / f"{name}.mp4", number)
    return tmp_path / "videos"


@pytest.fixture
def run(tmp_path: Path, taehv_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PrepareReport]:
    def started(
        encoder: SmallEncoder | None,
        out: str = "out",
        captions: Path | None = None,
        template: PromptTemplate | None = None,
    ) -> PrepareReport:
        monkeypatch.setattr(prepare_module, "load_text_encoder", lambda pipeline, template, device: encoder)
        return prepare(
            tmp_path / "videos",
            tmp_path / out,
            taehv_file,
            frames=5,
            height=16,
            width=32,
            fps=12.0,
            dtype="float32",
            text_encoder=None if encoder is None else Path("pipeline"),
            captions=captions,
            template=template,
        )

    return started


def tell(videos: Path, **captions: str) -> None:
    for name, caption in captions.items():
        (videos / f"{name}.txt").write_text(caption)


def test_windows_have_the_caption_of_their_video_which_is_encoded_once(
    videos: Path, tmp_path: Path, run: Callable[..., PrepareReport]
) -> None:
    tell(videos, a="speaks", b="turns left", c="speaks")
    encoder = SmallEncoder()
    assert run(encoder).total == 6
    texts = LatentDataset(tmp_path / "out").texts
    assert texts is not None
    assert [texts.caption(number) for number in range(6)] == ["speaks"] * 2 + ["turns left"] * 2 + ["speaks"] * 2
    assert encoder.seen == ["speaks", "turns left"]
    found, expected = texts.prompt(2), SmallEncoder().encode("turns left", None)
    assert found is not None
    assert torch.equal(found.text_states, expected.text_states)

    clip(videos / "d.mp4", 4)
    tell(videos, d="turns left")
    again = SmallEncoder()
    assert run(again).added == 2
    assert again.seen == []


def test_latents_do_not_depend_on_captions(
    videos: Path, tmp_path: Path, run: Callable[..., PrepareReport], caplog: pytest.LogCaptureFixture
) -> None:
    tell(videos, a="speaks", b="turns left", c="speaks")
    run(SmallEncoder())
    with caplog.at_level("INFO"):
        run(None, out="plain")
    assert "3 videos have a caption next to them. It is not used without --text-encoder" in caplog.text
    with_captions, without = LatentDataset(tmp_path / "out"), LatentDataset(tmp_path / "plain")
    assert without.texts is None
    assert all(
        torch.equal(*tensors) for tensors in zip(with_captions.batch(range(6)), without.batch(range(6)), strict=True)
    )


@pytest.mark.parametrize("caption", ["speaks", None])
def test_an_encoder_that_sees_the_image_gets_each_windows_first_frame(
    caption: str | None, videos: Path, tmp_path: Path, run: Callable[..., PrepareReport]
) -> None:
    """It needs no captions: the image alone is a conditioning."""
    if caption is not None:
        tell(videos, a=caption, b=caption, c=caption)
    run(SmallEncoder(HUNYUAN_I2V_CONCAT))
    texts = LatentDataset(tmp_path / "out").texts
    assert texts is not None
    frames = torch.stack(list(read_video(videos / "a.mp4").frames))
    first = frames_to_unit(resize_crop(frames[5:6], 16, 32))[:, 0]
    for empty, text in ((False, caption or ""), (True, "")):
        found, expected = texts.prompt(1, empty=empty), SmallEncoder(HUNYUAN_I2V_CONCAT).encode(text, first)
        assert found is not None
        torch.testing.assert_close(found.text_states, expected.text_states)


def test_captions_and_encoders_that_do_not_fit_are_refused_before_anything_is_encoded(
    videos: Path, tmp_path: Path, run: Callable[..., PrepareReport]
) -> None:
    with pytest.raises(CaptionError, match=r"no captions: no video has a text file.*--captions"):
        run(SmallEncoder())
    (tmp_path / "table.csv").write_text("video,caption\na.mp4,speaks\n")
    with pytest.raises(CaptionError, match="2 of 3 videos have no row"):
        run(SmallEncoder(), captions=tmp_path / "table.csv")
    with pytest.raises(CaptionError, match=r"table of captions is named .*--text-encoder"):
        run(None, captions=tmp_path / "table.csv")
    with pytest.raises(CaptionError, match=r"template is named .hunyuan_i2v_concat., but no text encoder"):
        run(None, template=HUNYUAN_I2V_CONCAT)
    tell(videos, a="speaks", b="turns left", c="speaks")
    with pytest.raises(CaptionError, match="belongs to wan, but the VAE encodes for hunyuan_video"):
        run(SmallEncoder(WAN))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_caption_that_cannot_be_encoded_leaves_out_its_video(
    videos: Path, tmp_path: Path, run: Callable[..., PrepareReport]
) -> None:
    tell(videos, a="speaks", b="word " * 10_000, c="speaks")
    report = run(SmallEncoder())
    assert report.added == 4
    assert list(report.skipped) == ["b.mp4"]
    assert "The caption of " in report.skipped["b.mp4"]
    assert "10000 words, expected at most 100" in report.skipped["b.mp4"]
    tell(videos, b="blinks")
    assert run(SmallEncoder()).added == 2


def test_a_changed_caption_is_refused_for_windows_that_are_already_encoded(
    videos: Path, tmp_path: Path, run: Callable[..., PrepareReport]
) -> None:
    tell(videos, a="speaks", b="turns left", c="speaks")
    run(SmallEncoder())
    tell(videos, b="turns right")
    report = run(SmallEncoder())
    assert report.added == 0
    assert (
        "has the caption 'turns right', but its windows in the dataset were encoded with 'turns left'"
        in (report.skipped["b.mp4"])
    )


def test_a_copy_of_a_video_may_have_its_own_caption_and_a_renamed_video_keeps_its_own(
    videos: Path, tmp_path: Path, run: Callable[..., PrepareReport]
) -> None:
    shutil.copy(videos / "a.mp4", videos / "d.mp4")
    tell(videos, a="speaks", b="turns left", c="speaks", d="blinks")
    assert run(SmallEncoder()).total == 8
    texts = LatentDataset(tmp_path / "out").texts
    assert texts is not None
    assert [texts.caption(number) for number in (0, 7)] == ["speaks", "blinks"]
    for suffix in (".mp4", ".txt"):
        (videos / f"d{suffix}").rename(videos / f"e{suffix}")
    report = run(SmallEncoder())
    assert (report.added, report.already_in, report.skipped) == (0, 4, {})
    tell(videos, e="sings")
    assert "encoded with 'blinks'" in run(SmallEncoder()).skipped["e.mp4"]


def test_the_text_encoder_of_a_release_sees_caption_and_first_frame(
    videos: Path, tmp_path: Path, taehv_file: Path, image_to_video: Path
) -> None:
    """With the tokenizers and networks of a HunyuanVideo-I2V pipeline, and the template of its transformer."""
    tell(videos, a="a smiling face", b="", c="a face")
    size = {"frames": 5, "height": 16, "width": 32, "fps": 12.0, "dtype": "float32"}
    prepare(videos, tmp_path / "out", taehv_file, **size, text_encoder=image_to_video)  # type: ignore[arg-type]
    texts = LatentDataset(tmp_path / "out").texts
    assert texts is not None
    assert texts.index.template == HUNYUAN_I2V_CONCAT
    encoder = load_text_encoder(image_to_video)
    frames = torch.stack(list(read_video(videos / "a.mp4").frames))
    first = frames_to_unit(resize_crop(frames[5:6], 16, 32))[:, 0]
    for empty, caption in ((False, "a smiling face"), (True, "")):
        found, expected = texts.prompt(1, empty=empty), encoder.encode(caption, first)
        assert found is not None
        # bf16 arithmetic: without instructions for it, a CPU rounds single and batched products differently.
        torch.testing.assert_close(found.text_states, expected.text_states, rtol=0.016, atol=1e-3)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0.016, atol=1e-3)
