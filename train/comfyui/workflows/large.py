"""The workflows on large models, whose files are downloaded or exported by the trainer."""

from collections.abc import Mapping
from typing import Any

from .graph import Graph, Node
from .models import (
    CLIP_L,
    CLIP_L_VISION,
    DREAMSHAPER,
    HUNYUAN_I2V,
    HUNYUAN_ONE_STEP,
    HUNYUAN_VAE,
    HUNYUAN_W2S,
    HUNYUAN_W2S_LORA,
    MAGIC141_W2S,
    WAN_I2V,
    WAN_LORA,
    WAN_TEXT,
    WAN_VAE,
    WAN_VISION,
    ModelFile,
)
from .parts import NOTE_WIDTH, PREVIEW_ROOM, TEXT_ROOM, llava, lora_on_base, photograph, save

_MEASURED = """
**Memory and time**, measured on one H200 with bf16 weights and the same sampler outside ComfyUI, without text encoders
and VAE: 81 frames of 960 x 544 in 4 steps take 15.8 s and 30.5 GB. One step for 129 frames takes 8.3 s and 33.2 GB. On
smaller GPUs, ComfyUI keeps the rest of the model in main memory. **Quantise to int8** writes a file of half the size.
Fewer *seconds* in Portrait to video need less memory and time.
"""

_W2S = f"""
## A portrait in four steps

This model is a fully distilled HunyuanVideo-I2V. Its file contains its recipe and its null prompt. It therefore needs
no settings and no text encoder.

**Files**
- models/diffusion_models: **{HUNYUAN_W2S.name}**. This file is not published. Train it with this pack's trainer: use
  the preset *hunyuan_i2v_w2s_4step*, then *magicdistill export* (docs/train-your-own.md).
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).

**Then** choose your picture in *Your portrait* and press Run. The portrait may have any aspect ratio: *resolution*
chooses the size that crops least.
{_MEASURED}"""

_LORA = f"""
## The stock model, distilled with a LoRA

This workflow makes the same four-step videos without a second copy of the model. The LoRA file is small. It contains
its recipe (steps, shift) and the null prompt, so no text encoder is loaded. *Load few-step LoRA* shows how many of its
modules matched.

**Files**
- models/diffusion_models: **{HUNYUAN_I2V.name}** (the page offers the download).
- models/loras: **{HUNYUAN_W2S_LORA.name}**. Train it with this pack's trainer: use the preset
  *hunyuan_i2v_w2s_4step_lora*, then *magicdistill export --format lora* (docs/train-your-own.md).
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).
{_MEASURED}"""

_ONE_STEP = f"""
## A portrait in one step

The network runs once for the complete video. The result has less detail than with four steps, but this is the fastest
preview of a start image.

**Files**
- models/diffusion_models: **{HUNYUAN_ONE_STEP.name}**. Train it with this pack's trainer: use the preset
  *hunyuan_i2v_one_step*, then *magicdistill export*.
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).

The recipe in the file sets *1 step*, so leave *steps* at 0. More steps do not improve a one-step model.
{_MEASURED}"""

_MAGIC141 = f"""
## Magic 1-For-1: text and image

The text controls the motion, and the model reads it together with the picture. As in Magic 1-For-1, the tokens of the
vision-language model come first, then the tokens of the text.

**Files**
- models/diffusion_models: **{MAGIC141_W2S.name}**. Train it with this pack's trainer: use the preset
  *magic141_w2s_4step*, then *magicdistill export*. Magic 1-For-1's own files, including .pth and .pt files, work too,
  but they are no longer public.
- models/vae, models/text_encoders, models/clip_vision: the page offers the downloads.

Describe the motion in **Text + image encode**, with up to about 180 words. If the text is empty, only the
picture conditions the video.
{_MEASURED}"""

_WAN = """
## Wan 2.1 in four steps

This workflow runs Wan 2.1 image-to-video 480p with a public few-step LoRA (LightX2V) in this pack's nodes. *Load
few-step LoRA* shows how many of its modules matched.

**Files**: all files are public, and the page offers the downloads. The model has about 33 GB, the text encoder 7 GB.

- Describe the motion in *CLIP Text Encode*.
- The files contain no recipe. *Few-step flow sampler* is therefore set to the LoRA's settings: 4 steps, shift 5.
- *resolution* fits the size to the picture, with the area of 832 x 480. 81 frames at 16 frames per second last 5 s. For
  a shorter video set *length* or *seconds*.

Time and memory were not measured for this model. On a GPU with less than 40 GB, set *weight_dtype* of the loader to
fp8.
"""

_T2I = f"""
## Text, then a picture, then a video

A stock text-to-image model makes the start image, and a few-step model animates it. You can use any text-to-image
model: replace the group *Picture from text*, and link its picture to *start_image*.

**Files**
- models/checkpoints: **{DREAMSHAPER.name}** (the page offers the download), or another model for portraits.
- models/diffusion_models: **{HUNYUAN_W2S.name}**. Train it with this pack's trainer: use the preset
  *hunyuan_i2v_w2s_4step*, then *magicdistill export*.
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).

Press Run until you like the picture; its *seed* changes after each run. Then set *control after generate* to fixed.
From then on, each run makes only a new video.
{_MEASURED}"""

_PROMPT = "The woman looks into the camera, smiles, and says a few words; her head moves slightly. Soft daylight."
_SIMILAR = f"""
## A picture of yours, found by a text

*Similar picture* looks through a folder for the picture that is most similar to the text, and the few-step model
animates it. Magic 1-For-1 describes this as an image prior by retrieval.

**Files**
- **Your pictures**: put them into a folder inside ComfyUI's **input** folder, and write its name into *folder*. The
  first run looks at all pictures; later runs at new and changed ones only.
- models/text_encoders: **{CLIP_L.name}** (the page offers the download).
- models/clip_vision: **{CLIP_L_VISION.name}**. Download *model.safetensors* of *openai/clip-vit-large-patch14* from
  Hugging Face, and give it this name.
- models/diffusion_models: **{HUNYUAN_W2S.name}**. Train it with this pack's trainer: use the preset
  *hunyuan_i2v_w2s_4step*, then *magicdistill export*.
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).

The node shows the best pictures with their similarity. *rank* 2 takes the second. Connect *image* to search by a
picture; text and image together find a picture that is similar to both.
"""

_PICTURE = "portrait photograph of a woman with short dark hair, head and shoulders, facing the camera, soft daylight"
_NEGATIVE = "hands, text, watermark, cropped head, blurry"


def hunyuan_i2v_w2s_4step(graph: Graph) -> None:
    """Add the nodes of a workflow with a full four-step model file of the trainer."""
    _note(graph, _W2S)
    _from_model_file(graph, HUNYUAN_W2S)


def hunyuan_i2v_one_step(graph: Graph) -> None:
    """Add the nodes of a workflow with a full one-step model file of the trainer."""
    _note(graph, _ONE_STEP)
    _from_model_file(graph, HUNYUAN_ONE_STEP)


def hunyuan_i2v_w2s_4step_lora(graph: Graph) -> None:
    """Add the nodes of a workflow with a generator LoRA of the trainer on the stock model."""
    _note(graph, _LORA)
    with graph.column("Models"):
        _, lora = lora_on_base(graph, HUNYUAN_I2V, HUNYUAN_W2S_LORA)
        vae = _vae(graph, HUNYUAN_VAE)
    with graph.column("Start image"):
        portrait = photograph(graph)
    _add_video(graph, lora, vae, portrait)


def magic141_text_image_to_video(graph: Graph) -> None:
    """Add the nodes of a workflow with Magic 1-For-1 and its text and image conditioning."""
    _note(graph, _MAGIC141)
    with graph.column("Models"):
        model, vae = _model(graph, MAGIC141_W2S), _vae(graph, HUNYUAN_VAE)
        clip, vision = llava(graph)
    with graph.column("Start image and text"):
        portrait = photograph(graph)
        seen = graph.node("CLIPVisionEncode", clip_vision=vision, image=portrait, crop="center")
        text = graph.node(
            "MagicDistillTextImageEncode",
            room=TEXT_ROOM,
            clip=clip,
            clip_vision_output=seen,
            prompt=_PROMPT,
            template="Magic 1-For-1",
        )
    _add_video(graph, model, vae, portrait, conditions={"positive": text})


def wan21_i2v_4step_lora(graph: Graph) -> None:
    """Add the nodes of a workflow with Wan 2.1 and a public few-step LoRA."""
    _note(graph, _WAN)
    with graph.column("Models"):
        _, lora = lora_on_base(graph, WAN_I2V, WAN_LORA)
        vae = _vae(graph, WAN_VAE)
        clip = graph.node("CLIPLoader", models=(WAN_TEXT,), clip_name=WAN_TEXT.name, type="wan")
        vision = graph.node("CLIPVisionLoader", models=(WAN_VISION,), clip_name=WAN_VISION.name)
    with graph.column("Start image and text"):
        portrait = photograph(graph)
        seen = graph.node("CLIPVisionEncode", clip_vision=vision, image=portrait, crop="none")
        text = graph.node("CLIPTextEncode", clip=clip, text=_PROMPT)
    settings = {"steps": 4, "shift": 5.0, "sampler": "euler"}
    conditions = {"positive": text, "clip_vision_output": seen}
    _add_video(graph, lora, vae, portrait, 16.0, conditions, settings)


def text_to_image_to_video(graph: Graph) -> None:
    """Add the nodes of a workflow with a stock text-to-image model, then a few-step video model."""
    _note(graph, _T2I)
    with graph.column("Picture from text"):
        checkpoint = graph.node("CheckpointLoaderSimple", models=(DREAMSHAPER,), ckpt_name=DREAMSHAPER.name)
        clip = checkpoint.output("CLIP")
        positive = graph.node("CLIPTextEncode", "What to paint", clip=clip, text=_PICTURE)
        negative = graph.node("CLIPTextEncode", "What to leave out", clip=clip, text=_NEGATIVE)
        empty = graph.node("EmptyLatentImage", width=512, height=640)
    with graph.column("Start image"):
        painted = graph.node(
            "KSampler",
            model=checkpoint,
            positive=positive,
            negative=negative,
            latent_image=empty,
            steps=25,
            cfg=6.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
        )
        picture = graph.node("VAEDecode", samples=painted, vae=checkpoint.output("VAE"))
        graph.node("PreviewImage", "The start image", room=280, images=picture)
    with graph.column("Models"):
        model, vae = _model(graph, HUNYUAN_W2S), _vae(graph, HUNYUAN_VAE)
    _add_video(graph, model, vae, picture)


def similar_picture_to_video(graph: Graph) -> None:
    """Add the nodes of a workflow that finds the start image in a folder, by a text."""
    _note(graph, _SIMILAR)
    with graph.column("Picture from a folder"):
        clip = graph.node("CLIPLoader", models=(CLIP_L,), clip_name=CLIP_L.name, type="stable_diffusion")
        vision = graph.node("CLIPVisionLoader", models=(CLIP_L_VISION,), clip_name=CLIP_L_VISION.name)
        picture = graph.node(
            "MagicDistillSimilarPicture",
            room=TEXT_ROOM + PREVIEW_ROOM,
            clip_vision=vision,
            clip=clip,
            text="a smiling woman with red hair, in daylight",
        )
    with graph.column("Models"):
        model, vae = _model(graph, HUNYUAN_W2S), _vae(graph, HUNYUAN_VAE)
    _add_video(graph, model, vae, picture)


def _from_model_file(graph: Graph, file: ModelFile) -> None:
    with graph.column("Models"):
        model, vae = _model(graph, file), _vae(graph, HUNYUAN_VAE)
        graph.section("Start image")
        portrait = photograph(graph)
    _add_video(graph, model, vae, portrait)


def _add_video(
    graph: Graph,
    model: Node,
    vae: Node,
    portrait: Node,
    fps: float = 24.0,
    conditions: Mapping[str, Node] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Add the columns from Portrait to video to the saved video.

    Args:
        graph: the workflow.
        model: node of the video model.
        vae: node of the VAE.
        portrait: node of the start image.
        fps: frame rate of the video.
        conditions: further inputs of Portrait to video, by name; None for no further inputs.
        settings: inputs of the sampler by name, for files without a recipe; None to use the file's recipe.
    """
    with graph.column("Video"):
        more: dict[str, Any] = {"resolution": "fit the image", **(conditions or {})}
        video = graph.node(
            "MagicDistillPortraitToVideo", room=2 * TEXT_ROOM, model=model, vae=vae, start_image=portrait, **more
        )
    with graph.column("Sampling"):
        more = dict(settings or {})
        latent = graph.node(
            "MagicDistillSampler",
            room=PREVIEW_ROOM,
            model=model,
            conditioning=video,
            latent=video.output("LATENT"),
            **more,
        )
        # Tiled, because decoding the full video at once needs more memory than sampling.
        frames = graph.node("VAEDecodeTiled", samples=latent, vae=vae, tile_size=256, temporal_size=64)
    save(graph, frames, latent.output("record"), fps)


def _note(graph: Graph, text: str) -> None:
    with graph.column(width=NOTE_WIDTH):
        graph.note(text)


def _model(graph: Graph, file: ModelFile) -> Node:
    return graph.node("MagicDistillLoadModel", models=(file,), room=TEXT_ROOM, unet_name=file.name)


def _vae(graph: Graph, file: ModelFile) -> Node:
    return graph.node("VAELoader", models=(file,), vae_name=file.name)
