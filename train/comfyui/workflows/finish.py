"""The workflow that finishes a clip with ComfyUI's own nodes."""

from .graph import Graph
from .models import FILM, POCKET_4STEP_LORA, POCKET_TEACHER, POCKET_VAE, REAL_ESRGAN
from .parts import NOTE_WIDTH, PREVIEW_ROOM, TEXT_ROOM, lora_on_base, save

_FPS, _TIMES = 24.0, 2
_NOTE = f"""
## A clip, finished with ComfyUI's own nodes

Four steps make a short and small clip. ComfyUI's own nodes then do three things:

- **Transfer Color** returns the colours of each frame to those of the start image.
- **Run Frame Interpolation Model** adds a frame between every two, for {_TIMES * _FPS:g} frames per second.
- **Upscale Image** makes the frames four times as wide and high.

**Files**
- The pocket model comes with the pack.
- models/frame_interpolation: **{FILM.name}** (the page offers the download). RIFE files work too.
- models/upscale_models: **{REAL_ESRGAN.name}** (the page offers the download), or another upscaling model.

**Change it**
- To leave one out, select its node and press Ctrl+B. Without interpolation, set *fps* to {_FPS:g}.
- If the light should change in the clip, set *source_stats* of Transfer Color to *uniform*: all frames get the same
  correction.
- If the model's release drops first frames (HunyuanVideo-I2V concat: 4), set *drop_frames* of Save portrait video to
  8, because interpolation doubles them.
- All frames are in memory at once. For a large video, put *Upscale Image By* after the upscaling, or leave it out.
"""


def portrait_pocket_finished(graph: Graph) -> None:
    """Add the nodes of a portrait, and the stock nodes for its colours, its frame rate and its size."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_NOTE)
    with graph.column("Models"):
        _, model = lora_on_base(graph, POCKET_TEACHER, POCKET_4STEP_LORA)
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
    with graph.column("Video"):
        video = graph.node("MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=portrait)
    with graph.column("Sampling"):
        latent = graph.node(
            "MagicDistillSampler", room=PREVIEW_ROOM, model=model, conditioning=video, latent=video.output("LATENT")
        )
        frames = graph.node("VAEDecode", samples=latent, vae=vae)
    with graph.column("Colours"):
        coloured = graph.node("ColorTransfer", image_target=frames, image_ref=portrait)
        graph.section("Frame rate")
        between = graph.node("FrameInterpolationModelLoader", models=(FILM,), model_name=FILM.name)
        smooth = graph.node("FrameInterpolate", interp_model=between, images=coloured, multiplier=_TIMES)
        graph.section("Size")
        larger = graph.node("UpscaleModelLoader", models=(REAL_ESRGAN,), model_name=REAL_ESRGAN.name)
        finished = graph.node("ImageUpscaleWithModel", upscale_model=larger, image=smooth)
    save(graph, finished, latent.output("record"), _TIMES * _FPS, "video/portrait_finished")
