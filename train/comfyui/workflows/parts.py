"""Groups of nodes that several workflows share."""

from typing import Any

from .graph import Graph, Node, Subgraph, Wire
from .models import CLIP_L, LLAVA_TEXT, LLAVA_VISION, ModelFile

NOTE_WIDTH = 400
# Extra heights in pixels: for a text that a node shows after a run, and for a preview, a video or a picture.
TEXT_ROOM, PREVIEW_ROOM = 70, 320


def save(
    graph: Graph,
    frames: Node | Wire,
    record: Wire | None,
    fps: float,
    prefix: str = "video/portrait",
    picture: Node | None = None,
) -> None:
    """Add the last column: a node that saves the video, and one that saves a picture if there is one.

    Args:
        graph: the workflow.
        frames: source of the video's frames.
        record: source of the sampler's record of settings; None for no record.
        fps: frame rate of the video.
        prefix: prefix of the file names.
        picture: source of the picture; None for no picture.
    """
    with graph.column("Result"):
        inputs: dict[str, Any] = {"video": frames, "fps": fps, "filename_prefix": prefix} | (
            {"record": record} if record else {}
        )
        graph.node("MagicDistillSaveVideo", room=TEXT_ROOM + PREVIEW_ROOM, **inputs)
        if picture is not None:
            graph.node("SaveImage", room=PREVIEW_ROOM, images=picture, filename_prefix=prefix)


def lora_on_base(graph: Graph | Subgraph, base: ModelFile, lora: ModelFile) -> tuple[Node, Node]:
    """Add the loader of a model and, on it, that of its few-step LoRA.

    Returns:
        The node of the base and the node of the LoRA.
    """
    model = graph.node("MagicDistillLoadModel", models=(base,), room=TEXT_ROOM, unet_name=base.name)
    return model, graph.node("MagicDistillLoadLora", models=(lora,), room=TEXT_ROOM, model=model, lora_name=lora.name)


def photograph(graph: Graph) -> Node:
    """Add the node of the start image, and return it. Its default picture is part of ComfyUI."""
    return graph.node("LoadImage", "Your portrait", room=PREVIEW_ROOM, image="example.png")


def llava(graph: Graph) -> tuple[Node, Node]:
    """Add the nodes of HunyuanVideo's two text encoders, and of the vision tower of LLaVA, one of the two.

    Returns:
        The node of the text encoders and the node of the vision tower.
    """
    text = graph.node(
        "DualCLIPLoader",
        models=(CLIP_L, LLAVA_TEXT),
        clip_name1=CLIP_L.name,
        clip_name2=LLAVA_TEXT.name,
        type="hunyuan_video",
    )
    return text, graph.node("CLIPVisionLoader", models=(LLAVA_VISION,), clip_name=LLAVA_VISION.name)
