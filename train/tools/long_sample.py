"""Sample a long video from a still image and a model file, without ComfyUI: segments that continue each other."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicdistill_core.errors import VideoError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.files import write_text
from magicdistill_core.flow import SamplerCallback
from magicdistill_core.geometry import TIME_STRIDE
from magicdistill_core.hashes import tensors_sha256, weights_sha256
from magicdistill_core.long_video.drift import Embedder, Limits
from magicdistill_core.long_video.making import LongSettings, LongVideo, make_long_video
from magicdistill_core.long_video.plan import plan_video
from magicdistill_core.long_video.texts import seed_lines, spread
from magicdistill_core.media.audio import read_audio
from magicdistill_core.media.video import read_image
from magicdistill_core.media.video_writing import frame_rate
from magicdistill_core.pocket.files import VAE as POCKET_VAE
from magicdistill_core.safetensors_file import explained_writing

from .sample import LoadedModel, check_video_file, load_model, text_of, video_tags


@dataclass(frozen=True)
class LongOptions:
    """The options of a long video that a short one does not have.

    Attributes:
        seconds: length of the video.
        overlap: frames at a join that both segments show.
        segment_seeds: seeds of single segments, such as `3=42`.
        match_colours: whether the colours of each segment return to the portrait's.
        limits: when a segment is made again.
        retries: how often a segment is made again at most.
        sound: a file with the sound; None for a silent video.
    """

    seconds: float
    overlap: int = 1
    segment_seeds: Sequence[str] = ()
    match_colours: bool = True
    limits: Limits = field(default_factory=Limits)
    retries: int = 2
    sound: Path | None = None


def sample_long(
    file: Path,
    image: Path,
    out: Path,
    long: LongOptions,
    *,
    prompts: Sequence[Path] = (),
    captions: Sequence[str] = (),
    embed: Embedder | None = None,
    callback: SamplerCallback | None = None,
    said: Callable[[str], None] = lambda text: None,
    base: Path | None = None,
    vae: Path | None = None,
    image_encoder: Path | None = None,
    i2v_mode: str | None = None,
    **options: Any,
) -> LongVideo:
    """Sample a long video from a still image, or go on where a run of the same settings was stopped.

    Args:
        file: a teacher or generator (single file or diffusers folder), or a generator LoRA.
        image: the portrait with which the video begins, and whose colours it keeps.
        out: path of the mp4.
        long: length, joins and limits.
        prompts: files of `magicdistill encode-prompt`, one per segment; the last one is repeated.
        captions: captions that the file carries, one per segment; the last one is repeated.
        embed: a network for the identity; None leaves the identity out.
        callback: called after each model call, as in `magicdistill_core.flow`; None for no callback.
        said: called with a line of text for the user after each segment.
        base: as for `load_model`.
        vae: as for `load_model`.
        image_encoder: as for `load_model`.
        i2v_mode: as for `load_model`.
        options: as for `load_model`.

    Raises:
        MagicDistillError: if a file is unusable, a setting is missing or invalid, or a file cannot be written. Finished
            segments are kept.
    """
    check_video_file(out)
    picture = read_image(image)
    model = load_model(file, base=base, vae=vae, image_encoder=image_encoder, i2v_mode=i2v_mode, **options)
    settings = model.settings
    fps = frame_rate(settings.fps)
    plan = plan_video(long.seconds, float(fps), settings.frames, long.overlap, settings.dropped_frames)
    if prompts and captions:
        raise VideoError("--prompt and --caption are two texts for one video. Use only one of these options.")
    given: list[tuple[str, Path | None, str | None]] = [(file.name, file, None) for file in prompts]
    given += [(caption, None, caption) for caption in captions]
    texts: dict[str, NullPrompt] = {}
    names = []
    for title, prompt, caption in given or [("null prompt", None, None)]:
        text = text_of(model.checkpoint, prompt, caption)
        states = [tensor for tensor in (text.text_states, text.pooled) if tensor is not None]
        names.append(f"{title} ({tensors_sha256(*states)[:16]})")
        texts[names[-1]] = text
    chosen = spread(names, plan.segments, "prompts" if prompts else "captions")
    portrait = model.fitted(picture)
    files = {"model": file, "base": base, "vae": vae or POCKET_VAE, "image_encoder": image_encoder}
    precision = str(next(model.network.parameters()).dtype)
    long_settings = LongSettings(
        run={
            **{name: None if path is None else weights_sha256(path) for name, path in files.items()},
            "i2v_mode": i2v_mode,
            "precision": precision,
            # The seed belongs to the segments.
            "settings": {**asdict(replace(settings, seed=0)), "fps": str(fps)},
        },
        fps=fps,
        seed=settings.seed,
        seeds=seed_lines(long.segment_seeds, plan.segments),
        prompts=chosen,
        match_colours=long.match_colours,
        limits=long.limits,
        retries=long.retries,
        tags=video_tags(model.checkpoint, settings, None),
    )
    folder = out.with_name(f"{out.stem}.segments")
    maker = _Segments(model, texts, chosen, portrait, callback)
    audio = None if long.sound is None else read_audio(long.sound)
    if long.sound is not None and audio is None:
        raise VideoError(f"{long.sound.name} has no sound. Name a file with sound, or leave --sound out.")
    made = make_long_video(plan, long_settings, maker, portrait, folder, out, audio=audio, embed=embed, said=said)
    record = out.with_suffix(".json")
    with explained_writing(record):
        write_text(record, json.dumps(made.record(), indent=1) + "\n")
    return made


class _Segments:
    """Samples segments with a loaded model: the `SegmentModel` of the trainer."""

    def __init__(
        self,
        model: LoadedModel,
        texts: dict[str, NullPrompt],
        chosen: Sequence[str],
        portrait: Tensor,
        callback: SamplerCallback | None,
    ) -> None:
        self._model, self._texts, self._chosen = model, texts, chosen
        self._portrait, self._callback = portrait, callback

    def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
        known = 1
        if self._model.images.takes_history:
            # All shared frames of the form 4n + 1 are known.
            known = (len(start) - 1) // TIME_STRIDE * TIME_STRIDE + 1
        text = self._texts[self._chosen[number]]
        return self._model.latents(start[:known], text, seed, self._callback, self._portrait)

    def decode(self, latents: Tensor) -> Tensor:
        device = next(self._model.network.parameters()).device
        with torch.no_grad():
            return self._model.vae.decode(latents.to(device))[0].movedim(1, -1).cpu()
