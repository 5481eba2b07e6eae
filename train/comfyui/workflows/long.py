"""The workflows of long videos."""

from typing import Any

from .graph import Graph, Node
from .models import HUNYUAN_VAE, HUNYUAN_W2S, POCKET_4STEP_LORA, POCKET_TEACHER, POCKET_VAE
from .parts import NOTE_WIDTH, PREVIEW_ROOM, TEXT_ROOM, lora_on_base, photograph

_HOW = """
**How it works**: the model makes segments of its own length. Each starts from the last frame of the one before it, with
another seed. Finished segments stay on disk, in the folder *segments* next to the video. So after a stop, press Run
again: the node goes on where it was.

**Change one segment**: write its number and a seed into *segment_seeds*, such as **3: 42**. Only this segment and
those after it are made again.

**Longer**: raise *seconds*. The first segments are kept.

**Drift**: the message under the node says how far the end is from the beginning. *match_colors* keeps the colours;
a face may still change from segment to segment, because each one sees a single frame.
"""

_POCKET = f"""
## A long video

Press **Run**: the pocket model makes four seconds from six segments, within a minute even on a CPU. The pack contains
all files.
{_HOW}"""

_HUNYUAN = f"""
## A long portrait video

This model is a distilled HunyuanVideo-I2V with four steps. Twenty seconds take four segments of 129 frames.

**Files**
- models/diffusion_models: **{HUNYUAN_W2S.name}**. This file is not published. Train it with this pack's trainer: use
  the preset *hunyuan_i2v_w2s_4step*, then *magicdistill export* (docs/train-your-own.md).
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).
{_HOW}"""


def long_portrait_pocket(graph: Graph) -> None:
    """Add the nodes of a long video of the pocket model."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_POCKET)
    with graph.column("Models"):
        _, model = lora_on_base(graph, POCKET_TEACHER, POCKET_4STEP_LORA)
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
    _long(graph, model, vae, portrait, 4.0)


def long_portrait_hunyuan_i2v(graph: Graph) -> None:
    """Add the nodes of a long video of HunyuanVideo-I2V."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_HUNYUAN)
    with graph.column("Models"):
        model = graph.node("MagicDistillLoadModel", models=(HUNYUAN_W2S,), room=TEXT_ROOM, unet_name=HUNYUAN_W2S.name)
        vae = graph.node("VAELoader", models=(HUNYUAN_VAE,), vae_name=HUNYUAN_VAE.name)
        graph.section("Start image")
        portrait = photograph(graph)
    _long(graph, model, vae, portrait, 20.0, resolution="fit the image")


def _long(graph: Graph, model: Node, vae: Node, portrait: Node, seconds: float, **size: Any) -> None:
    with graph.column("Video"):
        video = graph.node(
            "MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=portrait, **size
        )
    with graph.column("Result"):
        graph.node(
            "MagicDistillLongVideo",
            room=3 * TEXT_ROOM + PREVIEW_ROOM,
            model=model,
            vae=vae,
            conditioning=video,
            latent=video.output("LATENT"),
            seconds=seconds,
        )
