"""Long portrait video: segments that continue each other, written to a file as they come."""

import json
import math
from contextlib import ExitStack
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import Input, InputImpl, io, ui
from server import PromptServer
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.families.base import Family
from ..magicdistill_core.flow import few_step_sigmas
from ..magicdistill_core.geometry import SPACE_STRIDE, video_frames
from ..magicdistill_core.long_video.drift import Embedder, Limits
from ..magicdistill_core.long_video.making import LongSettings, make_long_video
from ..magicdistill_core.long_video.opening import write_opening
from ..magicdistill_core.long_video.plan import MAX_SECONDS, plan_video
from ..magicdistill_core.long_video.texts import seed_lines, spread
from ..magicdistill_core.media.video_writing import MP4, frame_rate
from ..magicdistill_core.sizes import USUAL_SIZES, VideoSize
from .attachments import attached_to
from .filename_prefix import check_codes, free_file, portable_prefix, shortened
from .long_prompts import SegmentPrompts
from .other_changes import other_changes
from .picture_embedding import picture_embeddings
from .prompt_conditioning import Conditioning
from .release_edges import dropped_frames
from .reporting import LOGGER, report
from .run_record import changes_note, run_record
from .sampling_checks import embedded_guidance
from .sampling_settings import sampler_input, settings_for, settings_line, shift_input, steps_input
from .save_video import workflow_tags
from .segments import Segments
from .start_image import check_vae, family_taking_images, portrait_in
from .upstream import upstream_hash
from .video_input import sound_of, video_clip

_SEGMENT_FOLDER = "segments"


class LongVideo(io.ComfyNode):
    """Node `MagicDistillLongVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLongVideo",
            display_name="Long portrait video",
            category="MagicDistillation/video",
            description="Makes a video of any length from segments of the model's own length. Each segment starts from "
            "the last frame of the one before it. Finished segments stay on disk: after a stop, or a change of one "
            "segment's seed or prompt, only the rest is made again.",
            search_aliases=["magicdistill", "long video", "extend video", "continue video", "sliding window", "minute"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, from Load few-step model or Load few-step LoRA."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model, the one of Portrait to video."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The portrait and its prompt, from Portrait to video. All segments use this prompt unless "
                    "prompts is connected.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The latent of Portrait to video. It determines width, height and the length of a segment; "
                    "keep the recipe's length. Batches are refused.",
                ),
                io.Float.Input(
                    "seconds",
                    default=10.0,
                    min=0.1,
                    max=MAX_SECONDS,
                    step=0.1,
                    tooltip="Length of the video in seconds, from 0.1 to 3600. A longer video begins with the same "
                    "segments. Default: 10.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Whole number from 0 to 2^64 - 1: the seed of the first segment; those of the others "
                    "follow from it. Keep it fixed to change single segments with segment_seeds. Default: 0.",
                ),
                steps_input(),
                shift_input(),
                sampler_input(),
                io.String.Input(
                    "filename_prefix",
                    default="video/long_portrait",
                    tooltip="Name of the file, with its subfolder of the output folder; a number is added. The "
                    "segments are in the folder segments next to it; delete that folder when you no longer change the "
                    "video. Paths outside the output folder are refused.",
                ),
                io.String.Input(
                    "segment_seeds",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Seeds of single segments, one line each: the segment's number from 1, a colon, the seed, "
                    "such as 3: 42. That segment and all later ones are made again. Empty (default): all seeds follow "
                    "from seed.",
                ),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Frames at a join that both segments show, up to 64; they are cross-faded. 1 (default) "
                    "joins at one frame. Wan 2.1 sees the overlap and continues its motion: try 5. Other models see "
                    "one frame only, so a large overlap may show two motions at once.",
                ),
                io.Boolean.Input(
                    "match_colors",
                    default=True,
                    optional=True,
                    tooltip="On (default): the colours of each segment return to the portrait's, evenly from its first "
                    "frame to its last, so they do not drift. Turn it off if the light should change.",
                ),
                io.Float.Input(
                    "max_color_drift",
                    default=0.0,
                    min=0.0,
                    max=255.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip="Make a segment again with another seed if a colour channel of its last frames is further "
                    "than this from the portrait's, in levels of 255, before match_colors. 0 (default) is no limit.",
                ),
                io.Float.Input(
                    "min_sharpness",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Make a segment again if its last frames have less than this share of the portrait's "
                    "sharpness (no unit, up to 1), or more than its inverse. 0 (default) is no limit.",
                ),
                io.Float.Input(
                    "min_identity",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Make a segment again if its last frames are less similar to the portrait than this "
                    "cosine, up to 1. Needs identity_model; look at the record first, because the usual values depend "
                    "on that network. 0 (default) is no limit.",
                ),
                io.Int.Input(
                    "retries",
                    default=2,
                    min=0,
                    max=20,
                    optional=True,
                    advanced=True,
                    tooltip="How often a segment is made again at most, a whole number up to 20; then the best attempt "
                    "is kept. Only with a limit above. Default: 2.",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Compression from 0 to 51 on h264's quality scale: 18 (default) looks the same to the eye, "
                    "28 makes small files. Another value encodes the kept segments again, without sampling.",
                ),
                io.ClipVision.Input(
                    "identity_model",
                    optional=True,
                    tooltip="A CLIP vision network from Load CLIP Vision that compares each frame with the portrait. "
                    "The record and the message then say how similar the person still is. Not connected: only "
                    "colours, contrast and sharpness are measured.",
                ),
                SegmentPrompts.Input(
                    "prompts",
                    optional=True,
                    tooltip="One prompt for each segment, from Prompt per segment. Not connected: the prompt in "
                    "conditioning.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound, for example from Load Audio. Longer sound is cut at the end of the video; after "
                    "shorter sound the rest is silent. Not connected: the sound of continue_video, or none.",
                ),
                io.Video.Input(
                    "continue_video",
                    optional=True,
                    tooltip="A video to continue, from Load Video. The file begins with it, in the size and frame rate "
                    "of the model, and seconds are added after it. Give Portrait to video a good picture of the same "
                    "person: the colours stay those of that picture. Not connected: the video begins there.",
                ),
            ],
            outputs=[
                io.Video.Output(tooltip="The video's file, for nodes that take a VIDEO."),
                io.String.Output(
                    display_name="record",
                    tooltip="How each segment was made, as JSON: seed, prompt, attempts, and how far it drifted from "
                    "the portrait. It is also in the file, as the tag magicdistill.segments.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        try:
            if filename_prefix is not None:
                portable_prefix(filename_prefix, datetime.now())
                check_codes(filename_prefix)
        except VideoError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        conditioning: Conditioning,
        latent: dict,
        seconds: float,
        seed: int,
        steps: int,
        shift: float,
        sampler: str,
        filename_prefix: str,
        segment_seeds: str = "",
        overlap: int = 1,
        match_colors: bool = True,
        max_color_drift: float = 0.0,
        min_sharpness: float = 0.0,
        min_identity: float = 0.0,
        retries: int = 2,
        crf: float = 18.0,
        identity_model: ClipVisionModel | None = None,
        prompts: list[tuple[str, Conditioning]] | None = None,
        audio: Input.Audio | None = None,
        continue_video: Input.Video | None = None,
    ) -> io.NodeOutput:
        _check_numbers(max_color_drift=max_color_drift, min_sharpness=min_sharpness, min_identity=min_identity, crf=crf)
        if min_identity and identity_model is None:
            raise VideoError(
                f"min_identity is {min_identity:g}, but no network measures the identity. Connect Load CLIP Vision to "
                f"identity_model, or set min_identity to 0."
            )
        family, notes = family_taking_images(model)
        notes += check_vae(vae, family.architecture)
        portrait = portrait_in(conditioning)
        size, fps = _size_of(model, family, latent)
        plan = plan_video(seconds, float(fps), size.frames, overlap, dropped_frames(model))
        settings, more = settings_for(model, steps, shift, sampler)
        guidance, guidance_notes = embedded_guidance(model, conditioning)
        notes += more + guidance_notes
        sigmas = few_step_sigmas(settings.steps, settings.shift)
        changes = other_changes(model, conditioning, latent)
        record = run_record(model, conditioning, settings, sigmas, seed, guidance, changes)
        notes += changes_note(changes)
        lines = spread([line for line, _ in prompts or []], plan.segments, "prompts")
        texts = dict(prompts or [])
        limits = Limits(max_color_drift or None, min_sharpness or None, min_identity or None)
        long = LongSettings(
            run=_run(record, cls.hidden.prompt, cls.hidden.unique_id),
            fps=fps,
            seed=seed,
            seeds=seed_lines(segment_seeds.splitlines(), plan.segments),
            prompts=lines,
            match_colours=match_colors,
            limits=limits,
            retries=retries,
            crf=crf,
            tags=None if args.disable_metadata else workflow_tags(cls.hidden, record),
        )
        prefix, prefix_notes = portable_prefix(filename_prefix, datetime.now())
        notes += prefix_notes
        maker = Segments(
            model, vae, family, size, conditioning, [texts[line] for line in lines], settings, plan.segments
        )
        sound = None if audio is None else sound_of(audio)
        try:
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                prefix, folder_paths.get_output_directory(), size.width, size.height
            )
            segments = Path(folder) / _SEGMENT_FOLDER / name
            opening = None
            if continue_video is not None:
                clip = video_clip(continue_video, False, fps)
                opening = write_opening(clip.frames, plan, size.height, size.width, fps, crf, segments)
                sound, notes = sound or clip.audio, notes + clip.notes
            with ExitStack() as open_files:
                path = open_files.enter_context(free_file(Path(folder), name, counter, MP4.suffix))
                made = make_long_video(
                    plan,
                    long,
                    maker,
                    portrait[0],
                    segments,
                    path,
                    opening=opening,
                    audio=sound,
                    embed=None if identity_model is None else identity_embedder(identity_model),
                    said=cls._say,
                )
        except OSError as error:
            raise VideoError(
                f"The video cannot be saved under {shortened(prefix)!r} ({error.strerror or error}). Check that the "
                f"name is not too long, that the disk has free space and that ComfyUI may write to its output folder. "
                f"Finished segments are kept: run again to go on."
            ) from error
        notes += made.notes
        place = f"{subfolder}/{path.name}" if subfolder else path.name
        new = sum(entry["made"] for entry in made.segments)
        text = (
            f"{place}: {made.frames} frames in {plan.segments} segments, of which {new} are new\n"
            f"{settings_line(settings, sigmas)}\n"
            f"{made.report}"
        )
        shown = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(path)),
            json.dumps(made.record()),
            ui=ui.PreviewVideo([shown]).as_dict() | report(cls, text, notes).as_dict() | {"files": [shown]},
        )

    @classmethod
    def _say(cls, text: str) -> None:
        LOGGER.info("MagicDistillation: %s", text)
        if cls.hidden is not None and cls.hidden.unique_id:
            PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)


def identity_embedder(network: ClipVisionModel) -> Embedder:
    """Return a function from pictures `[N, 3, H, W]` in [0, 1] to embeddings `[N, D]` on the CPU."""

    def embed(pictures: Tensor) -> Tensor:
        return picture_embeddings(network, pictures.movedim(1, -1))

    return embed


def _check_numbers(**numbers: float) -> None:
    """Refuse numbers that ComfyUI lets through, before anything is sampled."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise VideoError(f"{name} is {value}, expected a number. Set it to the number that you want.")


def _size_of(model: ModelPatcher, family: Family, latent: dict) -> tuple[VideoSize, Fraction]:
    """Return the size of a segment and its frame rate, from the LATENT and the recipe."""
    batch, _, frames, rows, columns = latent["samples"].shape
    if batch != 1:
        raise VideoError(
            f"The latent holds {batch} videos, expected one. Set batch_size of Portrait to video to 1, and make "
            f"several long videos with several seeds."
        )
    attached = attached_to(model)
    recipe = None if attached is None else attached.recipe
    fps = USUAL_SIZES[family.architecture.name].fps if recipe is None else recipe.fps
    return VideoSize(columns * SPACE_STRIDE, rows * SPACE_STRIDE, video_frames(frames), fps), frame_rate(fps)


def _run(record: str, prompt: dict | None, node_id: str | None) -> dict[str, object]:
    """Return what determines all segments: the run's record without its seed, and all nodes before this one."""
    facts = {name: value for name, value in json.loads(record).items() if name not in ("seed", "magicdistill")}
    return {**facts, "nodes": upstream_hash(prompt, node_id, ("model", "vae", "conditioning", "latent"))}
