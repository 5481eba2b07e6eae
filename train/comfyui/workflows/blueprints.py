"""The subgraph blueprints of the pack: groups of nodes that the page offers as one node, in every workflow.

ComfyUI offers each `subgraphs/*.json` of a pack under its file's name, next to its own blueprints and to others.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .graph import Graph, Node, Subgraph, Wire
from .models import POCKET_4STEP_LORA, POCKET_TEACHER, POCKET_VAE
from .parts import PREVIEW_ROOM, TEXT_ROOM, lora_on_base
from .schemas import Schema

# The folder in the node library, below *Subgraph Blueprints*.
_CATEGORY = "MagicDistillation"
_OWN_MODEL = (
    "The video is saved; open the subgraph or the assets to see it. The pocket model comes with the pack; for another "
    "model, choose its file in unet_name, its few-step LoRA in lora_name and its VAE in vae_name. A complete few-step "
    "model needs no LoRA: set strength to 0."
)


@dataclass(frozen=True)
class Blueprint:
    """Definition of a blueprint.

    Attributes:
        fill: function that adds the nodes, the inputs and the outputs to an empty subgraph.
        description: what the blueprint does, for its tooltip.
        aliases: other words by which the page's search finds it.
    """

    fill: Callable[[Subgraph], None]
    description: str
    aliases: tuple[str, ...]


def portrait_clip(inner: Subgraph) -> None:
    """Add the nodes from a portrait to a saved clip."""
    start = inner.add_input("start_image", "IMAGE")
    model, vae, video = _prepared(inner, start)
    with inner.column("Sampling"):
        latent = inner.node(
            "MagicDistillSampler", room=PREVIEW_ROOM, model=model, conditioning=video, latent=video.output("LATENT")
        )
        frames = inner.node("VAEDecode", samples=latent, vae=vae)
    with inner.column("Result"):
        saved = inner.node(
            "MagicDistillSaveVideo", room=TEXT_ROOM + PREVIEW_ROOM, video=frames, record=latent.output("record")
        )
    for widget in ("resolution", "seconds"):
        inner.show_widget(video, widget)
    inner.show_widget(latent, "seed")
    for widget in ("fps", "filename_prefix"):
        inner.show_widget(saved, widget)
    inner.add_output("frames", frames.out)
    inner.add_output("record", latent.output("record"))


def extend_a_video(inner: Subgraph) -> None:
    """Add the nodes that continue a video. Its first frame is the portrait that the segments keep to."""
    whole = inner.add_input("video", "VIDEO")
    with inner.column("First frame"):
        # One second: the next node reads all frames of a VIDEO into memory.
        begin = inner.node("Video Slice", video=whole, duration=1.0)
        images = inner.node("GetVideoComponents", video=begin)
        portrait = inner.node("ImageFromBatch", image=images, batch_index=0)
    model, vae, video = _prepared(inner, portrait.out)
    long = _long(inner, model, vae, video, continue_video=whole)
    _show_long(inner, video, long)


def long_portrait_video(inner: Subgraph) -> None:
    """Add the nodes from a portrait to a long video."""
    start = inner.add_input("start_image", "IMAGE")
    prompts = inner.add_input("prompts", "MAGICDISTILL_PROMPTS", optional=True)
    audio = inner.add_input("audio", "AUDIO", optional=True)
    model, vae, video = _prepared(inner, start)
    long = _long(inner, model, vae, video, prompts=prompts, audio=audio)
    _show_long(inner, video, long)


def first_look(inner: Subgraph) -> None:
    """Add the nodes of a short long video, of its first and last frame side by side, and of its drift as text."""
    start = inner.add_input("start_image", "IMAGE")
    model, vae, video = _prepared(inner, start)
    long = _long(inner, model, vae, video, seconds=4.0, filename_prefix="video/first_look")
    with inner.column("First and last frame"):
        images = inner.node("GetVideoComponents", video=long)
        first = inner.node("ImageFromBatch", "First frame", image=images, batch_index=0)
        last = inner.node("ImageFromBatch", "Last frame", image=images, batch_index=-1)
        pair = inner.node("ImageStitch", image1=first, image2=last, spacing_width=4)
    with inner.column("Report"):
        report = inner.node("JsonExtractString", json_string=long.output("record"), key="report")
        inner.node("PreviewAny", "Drift", room=2 * TEXT_ROOM, source=report)
        shown = inner.node("PreviewImage", "First and last frame", room=PREVIEW_ROOM, images=pair)
    _show_long(inner, video, long)
    inner.show_pictures(shown)
    inner.add_output("first_and_last", pair.out)
    inner.add_output("report", report.out)


BLUEPRINTS: dict[str, Blueprint] = {
    "Portrait clip (MagicDistillation)": Blueprint(
        portrait_clip,
        f"Makes a clip of a portrait with a few-step model. {_OWN_MODEL}",
        ("magicdistill", "portrait to video", "image to video", "4 step video", "i2v"),
    ),
    "Extend a video (MagicDistillation)": Blueprint(
        extend_a_video,
        f"Continues any video for some seconds: segments of a few-step model follow its last frame. Colours stay those "
        f"of its first frame. {_OWN_MODEL}",
        ("magicdistill", "continue video", "extend video", "video continuation", "longer video"),
    ),
    "Long portrait video (MagicDistillation)": Blueprint(
        long_portrait_video,
        f"Makes a video of any length of a portrait, from segments that continue each other. {_OWN_MODEL}",
        ("magicdistill", "long video", "infinite video", "video segments", "talking portrait"),
    ),
    "First look with drift report (MagicDistillation)": Blueprint(
        first_look,
        f"Makes a few seconds of a portrait, shows the first and the last frame side by side, and reports how far "
        f"colours and sharpness drifted. {_OWN_MODEL}",
        ("magicdistill", "drift report", "compare first and last frame", "test a model", "quality check"),
    ),
}


def blueprint_json(name: str, schemas: Mapping[str, Schema]) -> str:
    """Return the JSON text of a blueprint's file: a workflow of one node, which is a subgraph.

    Args:
        name: name of the blueprint, a key of `BLUEPRINTS`.
        schemas: schemas of a running ComfyUI by node type, from `parse_schemas`.

    Raises:
        ConfigError: if the definition does not fit the schemas.
    """
    blueprint = BLUEPRINTS[name]
    # Another name than the subgraph's, because ids follow from names.
    graph = Graph(f"blueprint/{name}", schemas)
    inner = graph.subgraph(name)
    inner.facts = {"category": _CATEGORY, "description": blueprint.description}
    blueprint.fill(inner)
    with graph.column():
        graph.place(inner)
    whole = graph.to_json() | {"extra": {"BlueprintSearchAliases": list(blueprint.aliases)}}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _prepared(inner: Subgraph, start: Wire) -> tuple[Node, Node, Node]:
    """Add the loaders and the start image, with the widgets and the input that all blueprints show.

    Returns:
        The nodes of the model, of the VAE and of the start image.
    """
    positive = inner.add_input("positive", "CONDITIONING", optional=True)
    with inner.column("Models"):
        base, model = lora_on_base(inner, POCKET_TEACHER, POCKET_4STEP_LORA)
        vae = inner.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
    with inner.column("Video"):
        video = inner.node(
            "MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=start, positive=positive
        )
    inner.show_widget(base, "unet_name")
    inner.show_widget(model, "lora_name")
    inner.show_widget(model, "strength")
    inner.show_widget(vae, "vae_name")
    return model, vae, video


def _long(inner: Subgraph, model: Node, vae: Node, video: Node, **given: Any) -> Node:
    with inner.column("Long video"):
        return inner.node(
            "MagicDistillLongVideo",
            room=3 * TEXT_ROOM + PREVIEW_ROOM,
            model=model,
            vae=vae,
            conditioning=video,
            latent=video.output("LATENT"),
            **given,
        )


def _show_long(inner: Subgraph, video: Node, long: Node) -> None:
    """Show the widgets and outputs of a long video on the outer node."""
    inner.show_widget(video, "resolution")
    for widget in ("seconds", "seed", "filename_prefix", "segment_seeds"):
        inner.show_widget(long, widget)
    inner.add_output("video", long.out)
    inner.add_output("record", long.output("record"))
