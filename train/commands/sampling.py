"""The command `sample`: short and long videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from magicdistill_core.errors import ConfigError

from ..console import show
from .options import DeviceOption, Dtype, ImageEncoderOption, VaeOption, device_of

if TYPE_CHECKING:
    from magicdistill_core.flow import SamplerCallback

_LONG = "Long videos"


def sample(
    file: Annotated[Path, typer.Argument(help="Model file of a teacher or a generator, or a generator LoRA.")],
    image: Annotated[Path, typer.Option(help="Start image.")],
    out: Annotated[Path, typer.Option(help="The .mp4 file to write.")],
    base: Annotated[Path | None, typer.Option(help="For a LoRA: the model file on which it was trained.")] = None,
    vae: VaeOption = None,
    image_encoder: ImageEncoderOption = None,
    caption: Annotated[
        list[str] | None,
        typer.Option(
            help="One of the captions in the model file (see inspect); by default the null prompt. In a long video one "
            "for each segment; the last one is repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of the starting noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of model calls; by default the recipe's.")] = None,
    shift: Annotated[float | None, typer.Option(min=0.01, help="Timestep shift; by default the recipe's.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels; by default the recipe's.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels; by default the recipe's.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames, 4n + 1; by default the recipe's.")] = None,
    i2v_mode: Annotated[
        str | None,
        typer.Option(help="How the network receives the start image, if the file does not determine it (see inspect)."),
    ] = None,
    prompt: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file that `encode-prompt` wrote; by default the null prompt in the model file. In a long video one "
            "for each segment; the last one is repeated."
        ),
    ] = None,
    image_in_noise: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.999,
            help="Share of the image in the starting noise (HunyuanVideo-I2V: 0.001); by default the recipe's, or 0.",
        ),
    ] = None,
    dropped_frames: Annotated[
        int | None,
        typer.Option(
            min=0, help="First decoded frames to leave out (HunyuanVideo-I2V concat: 4); by default the recipe's, or 0."
        ),
    ] = None,
    precision: Annotated[
        Dtype | None, typer.Option(help="Precision of the network; by default bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    device: DeviceOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network; faster for many steps or segments of a large one.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of a long video, made of segments that continue each other. An interrupted one is continued "
            "by the same command.",
            rich_help_panel=_LONG,
        ),
    ] = None,
    overlap: Annotated[
        int, typer.Option(help="Frames at a join that both segments show, cross-faded.", rich_help_panel=_LONG)
    ] = 1,
    segment_seed: Annotated[
        list[str] | None,
        typer.Option(help="Seed of one segment, such as 3=42; repeatable.", rich_help_panel=_LONG),
    ] = None,
    match_colors: Annotated[
        bool,
        typer.Option(
            "--match-colors/--no-match-colors",
            help="Let the colours of each segment return to the portrait's.",
            rich_help_panel=_LONG,
        ),
    ] = True,
    max_color: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Make a segment again if a channel's mean in its last frames is further than this from the "
            "portrait's, in levels of 255.",
            rich_help_panel=_LONG,
        ),
    ] = None,
    min_sharpness: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Make a segment again if its last frames are less sharp than this share of the portrait's sharpness, "
            "or more than its inverse.",
            rich_help_panel=_LONG,
        ),
    ] = None,
    min_identity: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Make a segment again if the cosine of its last frames with the portrait is smaller than this; "
            "needs --identity.",
            rich_help_panel=_LONG,
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, max=20, help="How often a segment is made again at most.", rich_help_panel=_LONG)
    ] = 2,
    identity: Annotated[
        Path | None,
        typer.Option(
            help="A transformers folder of CLIP, which compares the frames with the portrait.", rich_help_panel=_LONG
        ),
    ] = None,
    sound: Annotated[
        Path | None, typer.Option(help="A file with the sound of the long video.", rich_help_panel=_LONG)
    ] = None,
) -> None:
    """Sample a video from a start image, without ComfyUI. With --seconds, a video of any length."""
    options = {
        "base": base,
        "vae": vae,
        "image_encoder": image_encoder,
        "seed": seed,
        "steps": steps,
        "shift": shift,
        "width": width,
        "height": height,
        "frames": frames,
        "i2v_mode": i2v_mode,
        "image_in_noise": image_in_noise,
        "dropped_frames": dropped_frames,
        "precision": None if precision is None else precision.value,
        "device": device_of(device),
        "compiled": compiled,
    }
    prompts, captions = prompt or [], caption or []
    if seconds is not None:
        limits = (max_color, min_sharpness, min_identity)
        joins = {"overlap": overlap, "match_colours": match_colors, "retries": retries, "sound": sound}
        long = {"seconds": seconds, "segment_seeds": segment_seed or [], **joins}
        _sample_long(file, image, out, long, limits, identity, prompts, captions, options)
        return
    if len(prompts) > 1 or len(captions) > 1:
        raise ConfigError("A video without --seconds has one text. Give --prompt or --caption once, or add --seconds.")
    from ..tools.sample import sample_file

    console = Console(stderr=True)
    with console.status("Loading") as status:
        settings = sample_file(
            file,
            image,
            out,
            prompt=prompts[0] if prompts else None,
            caption=captions[0] if captions else None,
            callback=_shows_steps(status),
            **options,
        )
    show(
        f"Wrote {out}: {settings.frames - settings.dropped_frames} frames of {settings.width} x {settings.height} at "
        f"{settings.fps:g} fps, {settings.steps} steps, shift {settings.shift:g}, seed {settings.seed}"
    )


def _shows_steps(status: Status) -> "SamplerCallback":
    return lambda state: status.update(f"Step {state.step + 1} done (sigma {state.sigma:.3f})")


def _sample_long(
    file: Path,
    image: Path,
    out: Path,
    long: dict[str, Any],
    limits: tuple[float | None, float | None, float | None],
    identity: Path | None,
    prompts: list[Path],
    captions: list[str],
    options: dict[str, Any],
) -> None:
    from magicdistill_core.long_video.drift import Limits

    from ..tools.identity import load_identity
    from ..tools.long_sample import LongOptions, sample_long

    if limits[2] is not None and identity is None:
        raise ConfigError("--min-identity needs a network. Name a folder of CLIP with --identity.")
    console = Console(stderr=True)
    with console.status("Loading") as status:
        made = sample_long(
            file,
            image,
            out,
            LongOptions(limits=Limits(*limits), **long),
            prompts=prompts,
            captions=captions,
            embed=None if identity is None else load_identity(identity, options["device"]),
            callback=_shows_steps(status),
            said=show,
            **options,
        )
    show(f"Wrote {out}: {made.frames} frames in {len(made.segments)} segments. Drift: {made.drift.line()}")
