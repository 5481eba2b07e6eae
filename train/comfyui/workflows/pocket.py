"""The workflows that run as they are, on the pocket model."""

from .graph import Graph, Subgraph, Wire
from .models import POCKET_FAKE_LORA, POCKET_GENERATOR, POCKET_TEACHER, POCKET_VAE
from .parts import NOTE_WIDTH, SAID, SHOWN, save

_PORTRAIT = """
## Portrait to video in four steps

Press **Run**: a drawn portrait becomes a short clip, on a CPU within seconds. All files come with the pack.

**Try**
- **Few-step flow sampler**: another *seed* is another take. 0 and *recipe* mean: as the file was distilled. Other
  settings work too, and the node says that they differ.
- **Pocket portrait**: another *seed* is another person.
- The result lies in **output/video**. Drop it on the canvas: this workflow comes back, with the settings that made it.

**Your own model**
- Put a HunyuanVideo-I2V file into **models/diffusion_models** and its VAE into **models/vae**, press R, and choose both
  in the loaders.
- Replace *Pocket portrait* by *Load Image*.

The pocket model is tiny and knows nothing but pocket portraits: photographs need a real model.
"""

_ONE_NODE = """
## The whole chain in one node

**Portrait in one node** is a subgraph: loaders, start image, sampler and decoder inside, and outside only what one
changes. Its button at the top right opens it; *Graph* in the path above leads back.

Press **Run**. Then copy the node into workflows of your own (Ctrl+C, Ctrl+V), or keep it: right-click, *Add Subgraph to
Library*.

Another model: choose its file in *unet_name*, its VAE in *vae_name*, and connect *Load Image*.
"""

_SWEEP = """
## What steered the distillation

Weak-to-strong distillation compares two models that are one: the **fake** one is the teacher with a low-rank branch
that has learned the generator's videos, the **real** one is the teacher with a little of that branch. How much is the
weight *a*:

- **a = 0** is the teacher alone (plain distribution matching),
- **a = 0.25** is what the papers use,
- **a = 1** is the fake model itself.

Here the real model samples the same noise at five weights, 28 steps each. The picture shows **a = 0 at the top, then
0.25, 0.5, 0.75, and 1 at the bottom**, frames from left to right. The more branch, the nearer to the few-step
generator's videos.

- Other weights: the numbers in *Weights*.
- Another *seed*: open any *Real model* (its button at the top right); what is inside is shared by all five.
- The video, at half speed, shows the same rows in motion.
- Your own teacher and its fake LoRA: choose them in *Models*.
"""


def portrait_pocket(graph: Graph) -> None:
    """The chain of the pack's nodes, one by one."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_PORTRAIT)
    with graph.column("Models"):
        model = graph.node(
            "MagicDistillLoadModel", models=(POCKET_GENERATOR,), room=SAID, unet_name=POCKET_GENERATOR.name
        )
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
    with graph.column("Video"):
        video = graph.node("MagicDistillPortraitToVideo", room=SAID, model=model, vae=vae, start_image=portrait)
    with graph.column("Sampling"):
        latent = graph.node(
            "MagicDistillSampler", room=SHOWN, model=model, conditioning=video, latent=video.output("LATENT")
        )
        frames = graph.node("VAEDecode", samples=latent, vae=vae)
    save(graph, frames, latent.output("record"), 24.0)


def portrait_in_one_node(graph: Graph) -> None:
    """The same chain as a subgraph."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_ONE_NODE)
    with graph.column("Start image"):
        portrait = graph.node("MagicDistillPocketPortrait", seed=11)
    with graph.column("Portrait in one node"):
        chain = graph.place(_chain(graph), start_image=portrait)
    save(graph, chain.output("frames"), chain.output("record"), 24.0)


def _chain(graph: Graph) -> Subgraph:
    inner = graph.subgraph("Portrait in one node")
    start = inner.take("start_image", "IMAGE")
    with inner.column("Models"):
        model = inner.node(
            "MagicDistillLoadModel", models=(POCKET_GENERATOR,), room=SAID, unet_name=POCKET_GENERATOR.name
        )
        vae = inner.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
    with inner.column("Video"):
        video = inner.node("MagicDistillPortraitToVideo", room=SAID, model=model, vae=vae, start_image=start)
    with inner.column("Sampling"):
        latent = inner.node(
            "MagicDistillSampler", room=SHOWN, model=model, conditioning=video, latent=video.output("LATENT")
        )
        frames = inner.node("VAEDecode", samples=latent, vae=vae)
    inner.show(latent, "seed")
    inner.show(video, "seconds")
    inner.show(model, "unet_name")
    inner.show(vae, "vae_name")
    inner.give("frames", frames.out)
    inner.give("record", latent.output("record"))
    return inner


_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def real_fake_sweep_pocket(graph: Graph) -> None:
    """The real model of five weights on the same noise, in one picture and one video."""
    with graph.column(width=NOTE_WIDTH):
        graph.note(_SWEEP)
    with graph.column("Models"):
        model = graph.node("MagicDistillLoadModel", models=(POCKET_TEACHER,), room=SAID, unet_name=POCKET_TEACHER.name)
        vae = graph.node("VAELoader", models=(POCKET_VAE,), vae_name=POCKET_VAE.name)
        graph.section("Start image")
        portrait = graph.node("MagicDistillPocketPortrait", seed=7)
        video = graph.node("MagicDistillPortraitToVideo", room=SAID, model=model, vae=vae, start_image=portrait)
    with graph.column("Weights"):
        # Linked, since older pages give a subgraph's own values to all of its nodes alike.
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
    model, conditioning = inner.take("model", "MODEL"), inner.take("conditioning", "CONDITIONING")
    latent, vae = inner.take("latent", "LATENT"), inner.take("vae", "VAE")
    with inner.column("Real model"):
        pair = inner.node(
            "MagicDistillRealFakeLora",
            models=(POCKET_FAKE_LORA,),
            room=SAID,
            model=model,
            lora_name=POCKET_FAKE_LORA.name,
        )
    with inner.column("The same noise for every weight"):
        sampled = inner.node(
            "MagicDistillSampler",
            room=SHOWN,
            model=pair.output("real"),
            conditioning=conditioning,
            latent=latent,
            seed=1,
        )
    with inner.column("Frames"):
        frames = inner.node("VAEDecode", samples=sampled, vae=vae)
    inner.show(pair, "weight_real")
    inner.give("frames", frames.out)
    return inner
