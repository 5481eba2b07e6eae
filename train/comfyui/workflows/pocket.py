"""The workflows on the pocket model, which run without other files."""

from .graph import Graph, Node, Subgraph, Wire
from .models import (
    POCKET_1STEP_LORA,
    POCKET_4STEP_LORA,
    POCKET_CAPTIONED_4STEP_LORA,
    POCKET_FAKE_LORA,
    POCKET_TEACHER,
    POCKET_VAE,
    ModelFile,
)
from .parts import NOTE_WIDTH, PREVIEW_ROOM, TEXT_ROOM, lora_on_base, save

_PORTRAIT = """
## Portrait to video in four steps

Press **Run**: a drawn portrait becomes a short video, within seconds even on a CPU. The pack contains all files: a
teacher that needs 28 steps, and a LoRA that makes it a model of four.

**Try**
- **Load few-step LoRA**: with *strength* 0 the teacher runs alone, with the 28 steps of its recipe.
- **Few-step flow sampler**: another *seed* makes another video. With *steps* 0, *shift* 0 and *sampler* recipe, the
  node takes the settings from the file's recipe. Other settings work too; the node then shows a note.
- **Pocket portrait**: another *seed* draws another person.
- ComfyUI saves the video in **output/video**. Drag it onto the canvas to open this workflow again with the settings of
  that video.

**Your own model**
- Put a HunyuanVideo-I2V file into **models/diffusion_models**, its few-step LoRA into **models/loras** and its VAE into
  **models/vae**. Press R, and choose the files in the loaders. A complete few-step model needs no LoRA: delete that
  node, or set its *strength* to 0.
- Replace *Pocket portrait* with *Load Image*.

The pocket model is tiny and was trained only on pocket portraits. Photographs need a full-size model.
"""

_ONE_STEP = """
## Portrait to video in one step

This model calls its network once per video. It was distilled from the four-step model of **portrait_pocket**. Press
**Run**. The pack contains all files.

**Compare**
- In *Load few-step LoRA*, choose **magicdistill_pocket_4step_lora.safetensors** and run again. The seed stays, so both
  models start from the same noise. The sampler takes four steps now, because the number is in the file.
- With *steps* 2 or 4, this model runs too, and the node shows a note: it was trained for one step only.

**Your own model**
- Train with **train/presets/pocket_one_step.yaml**, or at full size with **hunyuan_i2v_one_step.yaml**; the template
  **hunyuan_i2v_one_step** runs the result.
"""

_TI2V = """
## Text and image to video in four steps

A caption tells the person what to do. The LoRA teaches the pocket teacher 12 captions, and to make a video in four
steps. It contains the text conditioning of these captions, so no text encoder is loaded. Press **Run**. The pack
contains all files.

**Try** other captions in *Model caption*. A caption has three parts, with commas between them:
- turns left, keeps still, or turns right;
- speaks, or is silent;
- blinks, or does not blink.

For example: **turns right, is silent, does not blink**. Left and right are those of the picture. The message under the
node lists all captions. The *seed* of the sampler stays, so only the caption changes the video. If the caption is
empty, the model decides what happens.

**Your own model**
- Model files and LoRAs of every training with up to 32 different captions work like this (docs/training.md). Other
  texts need the text encoder of the model's release: see the template **magic141_text_image_to_video**.
"""

_ONE_NODE = """
## The complete workflow in one node

**Portrait in one node** is a subgraph. It contains the loaders, the start image, the sampler and the decoder, and shows
only the settings that are often changed. The button at its top right opens it. *Graph* in the path above the canvas
closes it.

Press **Run**. Then copy the node into your own workflows (Ctrl+C, Ctrl+V), or save it: right-click it and choose *Add
Subgraph to Library*.

For another model, choose its file in *unet_name*, its few-step LoRA in *lora_name* and its VAE in *vae_name*, and
connect *Load Image*. A complete few-step model needs no LoRA: open the node, and bypass *Load few-step LoRA* (Ctrl+B).
"""

_SWEEP = """
## The real model at five weights

Weak-to-strong distillation compares two models. Both are the teacher with the same low-rank branch, which has learned
the distribution of the generator's videos. The weight of the branch differs: the **fake** model uses it fully, the
**real** model at a small weight *a*:

- **a = 0** is the teacher alone (plain distribution matching).
- **a = 0.25** is the value in the papers.
- **a = 1** is the fake model itself.

This workflow samples the same noise with the real model at five weights, with 28 steps each. The rows of the picture
are **a = 0 (top), 0.25, 0.5, 0.75 and 1 (bottom)**; the columns are frames. With a larger weight, the videos become
more similar to those of the few-step generator.

- To change the weights, edit the numbers in *Weights*.
- To change the *seed*, open any *Real model* with the button at its top right. All five share the nodes inside.
- The video shows the same rows at half speed.
- To use your own teacher and its fake LoRA, choose them in *Models*.
"""


def portrait_pocket(graph: Graph) -> None:
    """Add the nodes of portrait to video with single nodes of the pack."""
    _single_nodes(graph, _PORTRAIT, POCKET_4STEP_LORA)


def portrait_pocket_one_step(graph: Graph) -> None:
    """Add the same nodes with the one-step generator."""
    _single_nodes(graph, _ONE_STEP, POCKET_1STEP_LORA)


def _single_nodes(graph: Graph, note: str, lora: ModelFile) -> None:
    with graph.column(width=NOTE_WIDTH):
        graph.note(note)
    with graph.column("Models"):
        _, model = lora_on_base(graph, POCKET_TEACHER, lora)
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
    with graph.column("Video"):
        video = graph.node("MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=portrait)
    _sampled(graph, model, vae, video)


def _sampled(graph: Graph, model: Node, vae: Node, video: Node) -> None:
    """Add the columns from the sampler to the saved video."""
    with graph.column("Sampling"):
        latent = graph.node(
            "MagicDistillSampler", room=PREVIEW_ROOM, model=model, conditioning=video, latent=video.output("LATENT")
        )
        frames = graph.node("VAEDecode", samples=latent, vae=vae)
    save(graph, frames, latent.output("record"), 24.0)


def portrait_pocket_ti2v(graph: Graph) -> None:
    """Add the nodes of text and image to video: the teacher with a LoRA that carries captions."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_TI2V)
    with graph.column("Models"):
        _, model = lora_on_base(graph, POCKET_TEACHER, POCKET_CAPTIONED_4STEP_LORA)
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
    with graph.column("Caption"):
        caption = graph.node(
            "MagicDistillModelCaption", room=3 * TEXT_ROOM, model=model, caption="turns left, speaks, blinks"
        )
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
    with graph.column("Video"):
        video = graph.node(
            "MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=portrait, positive=caption
        )
    _sampled(graph, model, vae, video)


def portrait_in_one_node(graph: Graph) -> None:
    """Add the nodes of portrait to video in one subgraph."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_ONE_NODE)
    with graph.column("Start image"):
        portrait = graph.node("MagicDistillPocketPortrait", seed=11)
    with graph.column("Portrait in one node"):
        chain = graph.place(_chain(graph), start_image=portrait)
    save(graph, chain.output("frames"), chain.output("record"), 24.0)


def _chain(graph: Graph) -> Subgraph:
    inner = graph.subgraph("Portrait in one node")
    start = inner.add_input("start_image", "IMAGE")
    with inner.column("Models"):
        base, model = lora_on_base(inner, POCKET_TEACHER, POCKET_4STEP_LORA)
        vae = inner.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
    with inner.column("Video"):
        video = inner.node("MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=start)
    with inner.column("Sampling"):
        latent = inner.node(
            "MagicDistillSampler", room=PREVIEW_ROOM, model=model, conditioning=video, latent=video.output("LATENT")
        )
        frames = inner.node("VAEDecode", samples=latent, vae=vae)
    inner.show_widget(latent, "seed")
    inner.show_widget(video, "seconds")
    inner.show_widget(base, "unet_name")
    inner.show_widget(model, "lora_name")
    inner.show_widget(vae, "vae_name")
    inner.add_output("frames", frames.out)
    inner.add_output("record", latent.output("record"))
    return inner


_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def real_fake_sweep_pocket(graph: Graph) -> None:
    """Add the nodes that sample the real model at five weights with the same noise.

    The result is one picture and one video. The real model is the teacher plus a low-rank branch (a LoRA) times the
    weight.
    """
    with graph.column(width=NOTE_WIDTH):
        graph.note(_SWEEP)
    with graph.column("Models"):
        model = graph.node(
            "MagicDistillLoadModel", models=(POCKET_TEACHER,), room=TEXT_ROOM, unet_name=POCKET_TEACHER.name
        )
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
        video = graph.node("MagicDistillPortraitToVideo", room=TEXT_ROOM, model=model, vae=vae, start_image=portrait)
    with graph.column("Weights"):
        # Linked inputs, because older pages apply the values of one subgraph node to all nodes of that subgraph.
        weights = [graph.node("PrimitiveFloat", f"a = {weight:g}", value=weight) for weight in _WEIGHTS]
    row = _row(graph)
    with graph.column("Five weights, one noise"):
        rows = [
            graph.place(
                row,
                f"Real model, a = {weight:g}",
                model=model,
                conditioning=video,
                latent=video.output("LATENT"),
                vae=vae,
                weight_real=number,
            )
            for weight, number in zip(_WEIGHTS, weights, strict=True)
        ]
    with graph.column("One above the other"):
        stacked: Wire = rows[0].out
        for weight, below in zip(_WEIGHTS[1:], rows[1:], strict=True):
            stacked = graph.node(
                "ImageStitch",
                f"... and a = {weight:g} below",
                image1=stacked,
                image2=below,
                direction="down",
                spacing_width=4,
            ).out
        graph.section("Frames from left to right")
        frames = graph.node("RebatchImages", images=stacked, batch_size=1)
        picture = graph.node("ImageGrid", images=frames, columns=17, cell_width=96, cell_height=496, padding=4)
    save(graph, stacked, None, 12.0, "video/real_fake_sweep", picture=picture)


def _row(graph: Graph) -> Subgraph:
    inner = graph.subgraph("Video of the real model")
    model, conditioning = inner.add_input("model", "MODEL"), inner.add_input("conditioning", "CONDITIONING")
    latent, vae = inner.add_input("latent", "LATENT"), inner.add_input("vae", "VAE")
    with inner.column("Real model"):
        pair = inner.node(
            "MagicDistillRealFakeLora",
            models=(POCKET_FAKE_LORA,),
            room=TEXT_ROOM,
            model=model,
            lora_name=POCKET_FAKE_LORA.name,
        )
    with inner.column("The same noise for every weight"):
        sampled = inner.node(
            "MagicDistillSampler",
            room=PREVIEW_ROOM,
            model=pair.output("real"),
            conditioning=conditioning,
            latent=latent,
            seed=1,
        )
    with inner.column("Frames"):
        frames = inner.node("VAEDecode", samples=sampled, vae=vae)
    inner.show_widget(pair, "weight_real")
    inner.add_output("frames", frames.out)
    return inner
