"""The workflows of large models: their files are downloaded, or made with the trainer."""

from collections.abc import Mapping
from typing import Any

from .graph import Graph, Node
from .models import (
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
from .parts import NOTE_WIDTH, SAID, SHOWN, llava, photograph, save

_MEASURED = """
**Memory and time**, measured on one H200 with bf16 weights, by the same sampler outside of ComfyUI, without text
encoders and VAE: 81 frames of 960 x 544 in 4 steps take 15.8 s and 30.5 GB; one step of 129 frames takes 8.3 s and
33.2 GB. Smaller cards: ComfyUI keeps in main memory what does not fit; **Quantise to int8** makes a file of half the
size; fewer *seconds* in Portrait to video need less of both.
"""

_W2S = f"""
## A portrait in four steps

A HunyuanVideo-I2V that was distilled whole: one file with its recipe and null prompt inside, so that there is nothing
to set and no text encoder to load.

**Files**
- models/diffusion_models: **{HUNYUAN_W2S.name}**. Nobody publishes it: it is made with the trainer of this pack, by the
  preset *hunyuan_i2v_w2s_4step* and then *magicdistill export* (docs/train-your-own.md).
- models/vae: **{HUNYUAN_VAE.name}** (the page offers the download).

**Then** choose your picture in *Your portrait* and press Run. Portraits of any shape fit: *resolution* takes the one
that crops least.
{_MEASURED}"""

_LORA = f"""
## The stock model, distilled by a LoRA

The same four steps without a second copy of the model: the LoRA is small, and brings its recipe (steps, shift) and the
null prompt along, so that no text encoder is loaded. *Load few-step LoRA* says how much of it matched.

**Files**
- models/diffusion_models: **{HUNYUAN_I2V.name}** (download offered).
- models/loras: **{HUNYUAN_W2S_LORA.name}**. Made with the trainer of this pack: preset
  *hunyuan_i2v_w2s_4step_lora*, then *magicdistill export --format lora* (docs/train-your-own.md).
- models/vae: **{HUNYUAN_VAE.name}** (download offered).
{_MEASURED}"""

_ONE_STEP = f"""
## A portrait in one step

One call of the network for the whole video. Coarser than four steps; the fastest way to see what a picture gives.

**Files**
- models/diffusion_models: **{HUNYUAN_ONE_STEP.name}**, made with the trainer of this pack: preset
  *hunyuan_i2v_one_step*, then *magicdistill export*.
- models/vae: **{HUNYUAN_VAE.name}** (download offered).

The recipe in the file says *1 step*: leave *steps* at 0. More steps do not help a model that knows one.
{_MEASURED}"""

_MAGIC141 = f"""
## Magic 1-For-1: text and image

Text that steers the motion, read together with the picture: the vision-language model's tokens first, then the text's,
as Magic 1-For-1 takes them.

**Files**
- models/diffusion_models: **{MAGIC141_W2S.name}**, from the trainer of this pack (preset *magic141_w2s_4step*, then
  *magicdistill export*). Magic 1-For-1's own files load too, .pth and .pt among them; they are not public any more.
- models/vae, models/text_encoders, models/clip_vision: download offered.

Write what happens in **Magic 1-For-1 text + image encode**, up to about 180 words. Left empty, the picture speaks
alone.
{_MEASURED}"""

_WAN = """
## Wan 2.1 in four steps

Wan 2.1 image-to-video 480p with a public few-step LoRA (LightX2V), through this pack's nodes. *Load few-step LoRA* says
how much of it matched.

**Files**: all of them public; the page offers the downloads. About 33 GB for the model, 7 GB for the text encoder.

- Write what happens in *CLIP Text Encode*.
- Neither file carries a recipe, so *Few-step flow sampler* is set to what the LoRA was made for: 4 steps, shift 5.
- *resolution* fits the picture, at the area of 832 x 480. 81 frames at 16 a second are 5 s; set *length* or *seconds*
  for less.

No time or memory was measured for this model. On less than 40 GB set *weight_dtype* of the loader to fp8.
"""

_T2I = f"""
## Text, then a picture, then a video

A stock checkpoint paints the start image; a few-step model makes it move. Any text-to-image model will do: replace the
group *Picture from text* by yours, and link its picture to *start_image*.

**Files**
- models/checkpoints: **{DREAMSHAPER.name}** (download offered), or another one that paints portraits.
- models/diffusion_models: **{HUNYUAN_W2S.name}**, from the trainer of this pack (preset *hunyuan_i2v_w2s_4step*, then
  *magicdistill export*).
- models/vae: **{HUNYUAN_VAE.name}** (download offered).

Press Run until the picture is one that you like (its *seed* changes by itself), then set *control after generate* to
fixed: from then on only the video is made anew.
{_MEASURED}"""

_PROMPT = "The woman looks into the camera, smiles, and says a few words; her head moves slightly. Soft daylight."
_PICTURE = "portrait photograph of a woman with short dark hair, head and shoulders, facing the camera, soft daylight"
_NEGATIVE = "hands, text, watermark, cropped head, blurry"


def hunyuan_i2v_w2s_4step(graph: Graph) -> None:
    """A checkpoint of the trainer, whole."""
    _note(graph, _W2S)
    _from_checkpoint(graph, HUNYUAN_W2S)


def hunyuan_i2v_one_step(graph: Graph) -> None:
    """A checkpoint that knows one step."""
    _note(graph, _ONE_STEP)
    _from_checkpoint(graph, HUNYUAN_ONE_STEP)


def hunyuan_i2v_w2s_4step_lora(graph: Graph) -> None:
    """A LoRA of the trainer on the stock base."""
    _note(graph, _LORA)
    with graph.column("Models"):
        base = _model(graph, HUNYUAN_I2V)
        lora = graph.node(
            "MagicDistillLoadLora", models=(HUNYUAN_W2S_LORA,), room=SAID, model=base, lora_name=HUNYUAN_W2S_LORA.name
        )
        vae = _vae(graph, HUNYUAN_VAE)
    with graph.column("Start image"):
        portrait = photograph(graph)
    _rest(graph, lora, vae, portrait)


def magic141_text_image_to_video(graph: Graph) -> None:
    """Magic 1-For-1 with its text and image conditioning."""
    _note(graph, _MAGIC141)
    with graph.column("Models"):
        model, vae = _model(graph, MAGIC141_W2S), _vae(graph, HUNYUAN_VAE)
        clip, vision = llava(graph)
    with graph.column("Start image and text"):
        portrait = photograph(graph)
        seen = graph.node("CLIPVisionEncode", clip_vision=vision, image=portrait, crop="none")
        text = graph.node("MagicDistillTextImageEncode", room=SAID, clip=clip, clip_vision_output=seen, prompt=_PROMPT)
    _rest(graph, model, vae, portrait, conditions={"positive": text})


def wan21_i2v_4step_lora(graph: Graph) -> None:
    """Wan 2.1 with a public few-step LoRA."""
    _note(graph, _WAN)
    with graph.column("Models"):
        base = _model(graph, WAN_I2V)
        lora = graph.node("MagicDistillLoadLora", models=(WAN_LORA,), room=SAID, model=base, lora_name=WAN_LORA.name)
        vae = _vae(graph, WAN_VAE)
        clip = graph.node("CLIPLoader", models=(WAN_TEXT,), clip_name=WAN_TEXT.name, type="wan")
        vision = graph.node("CLIPVisionLoader", models=(WAN_VISION,), clip_name=WAN_VISION.name)
    with graph.column("Start image and text"):
        portrait = photograph(graph)
        seen = graph.node("CLIPVisionEncode", clip_vision=vision, image=portrait, crop="none")
        text = graph.node("CLIPTextEncode", clip=clip, text=_PROMPT)
    settings = {"steps": 4, "shift": 5.0, "sampler": "euler"}
    conditions = {"positive": text, "clip_vision_output": seen}
    _rest(graph, lora, vae, portrait, 16.0, conditions, settings)


def text_to_image_to_video(graph: Graph) -> None:
    """A stock text-to-image model, then a few-step checkpoint."""
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
    _rest(graph, model, vae, picture)


def _from_checkpoint(graph: Graph, file: ModelFile) -> None:
    with graph.column("Models"):
        model, vae = _model(graph, file), _vae(graph, HUNYUAN_VAE)
        graph.section("Start image")
        portrait = photograph(graph)
    _rest(graph, model, vae, portrait)


def _rest(
    graph: Graph,
    model: Node,
    vae: Node,
    portrait: Node,
    fps: float = 24.0,
    conditions: Mapping[str, Node] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """From the models and the start image to the saved video.

    Args:
        conditions: more inputs of Portrait to video.
        settings: inputs of the sampler that no recipe gives.
    """
    with graph.column("Video"):
        more: dict[str, Any] = {"resolution": "fit the image", **(conditions or {})}
        video = graph.node(
            "MagicDistillPortraitToVideo", room=2 * SAID, model=model, vae=vae, start_image=portrait, **more
        )
    with graph.column("Sampling"):
        more = dict(settings or {})
        latent = graph.node(
            "MagicDistillSampler",
            room=SHOWN,
            model=model,
            conditioning=video,
            latent=video.output("LATENT"),
            **more,
        )
        # In tiles: the whole video at once needs more memory than the sampling.
        frames = graph.node("VAEDecodeTiled", samples=latent, vae=vae, tile_size=256, temporal_size=64)
    save(graph, frames, latent.output("record"), fps)


def _note(graph: Graph, text: str) -> None:
    with graph.column(width=NOTE_WIDTH):
        graph.note(text)


def _model(graph: Graph, file: ModelFile) -> Node:
    return graph.node("MagicDistillLoadModel", models=(file,), room=SAID, unet_name=file.name)


def _vae(graph: Graph, file: ModelFile) -> Node:
    return graph.node("VAELoader", models=(file,), vae_name=file.name)
