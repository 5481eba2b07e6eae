"""Commands that make data: `prepare` and `encode-prompt`."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from magicdistill_core.errors import ConfigError

from ..console import show
from .options import STORED, DeviceOption, Dtype, ImageEncoderOption, Template, VaeOption, device_of


def prepare(
    videos: Annotated[Path, typer.Option(help="Folder of videos, including its subfolders, or one video.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to create or to extend.")],
    vae: VaeOption = None,
    image_encoder: ImageEncoderOption = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a diffusers pipeline whose text encoder encodes captions; by default no captions."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="Table of captions (.jsonl, .csv, .parquet) with the columns video and caption; by default NAME.txt "
            "next to each video NAME."
        ),
    ] = None,
    template: Annotated[
        Template | None,
        typer.Option(
            help="How captions, and for some models the start images, are encoded; by default the pipeline's."
        ),
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of a sample, 4n + 1.")] = 17,
    height: Annotated[int, typer.Option(help="Height in pixels, a multiple of 16.")] = 96,
    width: Annotated[int, typer.Option(help="Width in pixels, a multiple of 16.")] = 96,
    fps: Annotated[float, typer.Option(help="Frame rate of the samples; videos are resampled to it.")] = 24.0,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Distance between the first frames of two samples of a video; by default they do not overlap."
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored latents.")] = Dtype.FP16,
    device: DeviceOption = None,
) -> None:
    """Encode videos into a training dataset. Repeat the command to continue or to add videos."""
    from magicdistill_core.pocket.files import VAE

    from ..data.prepare import prepare as run
    from ..data.skipped import by_reason

    report = run(
        videos,
        out,
        vae or VAE,
        frames,
        height,
        width,
        fps,
        stride,
        STORED[dtype],  # type: ignore[arg-type]
        device_of(device),
        Console(stderr=True),
        image_encoder,
        text_encoder,
        captions,
        None if template is None else template.value,
    )
    show(
        f"{report.added} samples added, {report.total} in {out}: {frames} frames of {width} x {height} at {fps:g} fps "
        f"each. {report.already_in} videos were already in the dataset, {len(report.skipped)} videos were skipped."
    )
    for reason in by_reason(report.skipped):
        show(f"Skipped: {reason}", style="yellow")
    if report.stopped_by:
        show(
            f"Stopped by {report.stopped_by}. Everything encoded so far is stored. Start the same command again to "
            f"continue."
        )
        raise typer.Exit(128 + signal.Signals[report.stopped_by])


def encode_prompt(
    pipeline: Annotated[Path, typer.Argument(help="Folder of a diffusers HunyuanVideo or Wan pipeline.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write, for the setting model.null_prompt.")],
    prompt: Annotated[str, typer.Option(help="The prompt; by default the empty text, which is the null prompt.")] = "",
    negative: Annotated[
        bool,
        typer.Option(
            "--negative",
            help="Encode the negative prompt that the model's release publishes (Wan 2.1 has one, for HunyuanVideo it "
            "is the empty text), for the setting model.negative_prompt.",
        ),
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option(
            help="The start image, for HunyuanVideo-I2V and Magic 1-For-1; the file then fits this image only."
        ),
    ] = None,
    template: Annotated[
        Template | None,
        typer.Option(
            help="How text and image are encoded; by default the pipeline's own way with --image, and the text alone "
            "without it."
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Encode a prompt into a file. Training and sampling then need no text encoder."""
    from ..data.prompts import encode_prompt as run
    from ..data.prompts import negative_text

    if negative:
        if prompt:
            raise ConfigError("--prompt and --negative are two texts for one file. Use only one of these options.")
        prompt = negative_text(pipeline)
    named = None if template is None else template.value
    encoded = run(pipeline, prompt, out, device_of(device), image, named)  # type: ignore[arg-type]
    _, tokens, width = encoded.text_states.shape
    show(f"Wrote {out}: {tokens} tokens of {width}")
