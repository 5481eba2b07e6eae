"""Similar picture: the picture of a folder that is nearest to a text or to a picture, as a start image."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP
from comfy_api.latest import io, ui
from torch import Tensor

from ..magicdistill_core.errors import CheckpointError, VideoError
from ..magicdistill_core.media.video import read_image
from ..magicdistill_core.retrieval import embed_folder, list_pictures, nearest
from .image_input import check_images, rgb
from .picture_embedding import picture_embeddings
from .reporting import report

_CACHE = "similar_pictures"
_SHOWN_SIDE = 256


class SimilarPicture(io.ComfyNode):
    """Node `MagicDistillSimilarPicture`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSimilarPicture",
            display_name="Similar picture",
            category="MagicDistillation/image",
            description="Finds the picture of a folder that is most similar to a text or to another picture, with "
            "CLIP, as the start image of a video (Magic 1-For-1: image priors by retrieval). The folder is read once; "
            "later runs look at new and changed pictures only.",
            search_aliases=["magicdistill", "retrieval", "image search", "nearest image", "clip search", "image prior"],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder of pictures inside ComfyUI's input folder, with its subfolders. Empty (default) is "
                    "the complete input folder. Paths outside it are refused.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="A CLIP vision model, from Load CLIP Vision. To search by text, use the one that belongs "
                    "to the text encoder: clip-vit-large-patch14 for clip_l.",
                ),
                io.Int.Input(
                    "rank",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Which picture is output: 1 (default) is the most similar one, 2 the second, up to 1000. "
                    "The node shows the best ones in their order; a whole number.",
                ),
                io.Int.Input(
                    "shown",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="How many pictures the node shows, a whole number from 1 to 64. Default: 8.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What the picture should show, such as: a woman with red hair who smiles. Needs clip. "
                    "Empty (default): image is used.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder clip_l, from Load CLIP with type stable_diffusion. Only for text.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture to which the result is similar. With text too, the result is similar to both.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The picture, for Portrait to video."),
                io.String.Output(display_name="name", tooltip="The name of its file inside the folder."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: object) -> str:
        """Run again if a picture of the folder was added, removed or changed."""
        digest = hashlib.sha256()
        if folder is None:  # it comes from another node, and is not known yet
            return ""
        try:
            for path in list_pictures(_inside(folder)):
                stat = path.stat()
                digest.update(f"{path}{stat.st_size}{stat.st_mtime_ns}".encode())
        except (VideoError, OSError):
            return ""
        return digest.hexdigest()

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        try:
            if folder is not None:
                _inside(folder)
        except VideoError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        folder: str,
        clip_vision: ClipVisionModel,
        rank: int,
        shown: int,
        text: str = "",
        clip: CLIP | None = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        place = _inside(folder)
        query = _query(clip_vision, text.strip(), clip, image)
        network = _fingerprint(clip_vision)
        cache = Path(folder_paths.get_output_directory()) / _CACHE
        cache /= f"{hashlib.sha256(str(place).encode()).hexdigest()[:16]}-{network[:16]}.safetensors"
        bar = comfy.utils.ProgressBar(1)

        def embed(pictures: Sequence[Tensor]) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return torch.cat([picture_embeddings(clip_vision, picture[None].float() / 255) for picture in pictures])

        found = embed_folder(place, cache, network, embed, lambda done, total: bar.update_absolute(done, total))
        best = nearest(found, query, max(rank, shown))
        if rank > len(best):
            raise VideoError(f"rank is {rank}, but the folder has {len(best)} pictures. Choose 1 to {len(best)}.")
        notes = [f"{name} cannot be read as a picture and is left out." for name in found.unreadable[:8]]
        if len(found.unreadable) > len(notes):
            notes.append(f"{len(found.unreadable) - len(notes)} more pictures cannot be read.")
        names = [path.relative_to(place).as_posix() for path, _ in best]
        listed = [f"{number + 1}: {names[number]} ({score:.3f})" for number, (_, score) in enumerate(best)]
        summary = f"{len(found.paths)} pictures, of which {found.added} are new\n" + "\n".join(listed[:shown])
        chosen = read_image(best[rank - 1][0]).float()[None] / 255
        preview = ui.PreviewImage(_sheet([path for path, _ in best[:shown]]), cls=cls).as_dict()
        return io.NodeOutput(chosen, names[rank - 1], ui=preview | report(cls, summary, notes).as_dict())


def _inside(folder: str) -> Path:
    """Return a folder inside ComfyUI's input folder.

    Raises:
        VideoError: if it is outside.
    """
    base = Path(folder_paths.get_input_directory()).resolve()
    place = (base / folder.strip()).resolve()
    if place != base and base not in place.parents:
        raise VideoError(
            f"The folder {folder!r} is not inside ComfyUI's input folder. Put the pictures into a folder there, and "
            f"write its name, such as portraits."
        )
    return place


def _query(clip_vision: ClipVisionModel, text: str, clip: CLIP | None, image: Tensor | None) -> Tensor:
    """Return the embedding of the text, of the image, or the mean of both."""
    parts = []
    if text:
        if clip is None:
            raise VideoError("There is a text but no text encoder. Connect Load CLIP (clip_l) to clip.")
        parts.append(_text_embedding(clip, text))
    if image is not None:
        check_images(image, "image")
        parts.append(picture_embeddings(clip_vision, rgb(image[:1]))[0])
    if not parts:
        raise VideoError("Neither a text nor an image says what to look for. Write a text, or connect an image.")
    if len({part.shape for part in parts}) > 1:
        raise VideoError(
            f"The text has embeddings of width {parts[0].numel()}, the image of width {parts[1].numel()}. Use a text "
            f"encoder and a CLIP vision model of one CLIP: clip_l and clip-vit-large-patch14."
        )
    return torch.stack([torch.nn.functional.normalize(part.float().cpu(), dim=0) for part in parts]).mean(dim=0)


def _text_embedding(clip: CLIP, text: str) -> Tensor:
    """Return the embedding `[D]` of a text in CLIP's space of text and image."""
    model, tokens = clip.cond_stage_model, clip.tokenize(text)
    inner = getattr(model, getattr(model, "clip", ""), None)
    if inner is None or len(tokens) != 1 or not hasattr(getattr(inner, "transformer", None), "text_projection"):
        raise CheckpointError(
            f"The CLIP is a {type(model).__name__}, expected CLIP's own text encoder. Load clip_l with Load CLIP, type "
            f"stable_diffusion."
        )
    # ComfyUI leaves out the projection for image generation. The common space of text and image is behind it.
    model.reset_clip_options()
    clip.load_model(tokens)
    model.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        pooled: Tensor = model.encode_token_weights(tokens)[1]
    finally:
        model.reset_clip_options()
    return pooled[0].float().cpu()


def _fingerprint(clip_vision: ClipVisionModel) -> str:
    """Return a hash of some of the network's weights, which tells networks apart in milliseconds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip_vision.get_sd().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _sheet(paths: Sequence[Path]) -> Tensor:
    """Return small copies of pictures as one IMAGE, each on a gray square."""
    squares = []
    for path in paths:
        picture = read_image(path).movedim(-1, 0)[None].float() / 255
        scale = _SHOWN_SIDE / max(picture.shape[-2:])
        size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
        small = torch.nn.functional.interpolate(picture, size=size, mode="bilinear", antialias=True)[0]
        square = torch.full((3, _SHOWN_SIDE, _SHOWN_SIDE), 0.5)
        top, left = ((_SHOWN_SIDE - side) // 2 for side in size)
        square[:, top : top + size[0], left : left + size[1]] = small
        squares.append(square.movedim(0, -1))
    return torch.stack(squares)
