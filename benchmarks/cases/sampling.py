"""Compare sampling (noise to latents) with the bare network calls in it, and with other samplers.

A bare call is a network call with prepared inputs, without a sampler.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.flow import TIMESTEPS, few_step_sigmas, sample_euler
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.recipe import Recipe
from train.comfyui.server import ComfyUIError, find_comfyui
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import network_velocity
from train.networks.prompts import prompt_on

from ..harness import Bench
from ..models import random_clip, random_network, random_prompt
from ..sizes import POCKET_SIZES, Clip, forward_flops

SHIFT = 5.0
FEW, MANY = 4, 28
OURS, PEER = "our Euler sampler", "diffusers' scheduler loop"
# Calls before the timed ones. Kernels are chosen in the first call; the last call shows how long one takes.
_BEFORE = 2
_SEED = 0
_COMFYUI_SIDE = Path(__file__).resolve().parents[1] / "comfyui_side.py"
_COMFYUI_REPEATS = 5
_COMFYUI_SECONDS = 150


def run(bench: Bench) -> None:
    """Measure 28 steps at the small clip, 4 steps at the usual clip, and then our node in ComfyUI."""
    sizes = bench.sizes
    generator = bench.generator(_SEED)
    with bench.case("network"):
        network = random_network(sizes.shape, bench.device, bench.dtype, generator)
        prompt = random_prompt(sizes.shape, sizes.text_tokens, bench.device, generator)
        forward = 0.0
        name = f"{sizes.small.name}, {MANY} steps"
        with bench.case(name):
            forward = measure_samplers(bench, network, prompt, sizes.small, MANY, repeats=3 if bench.full else 5)
        work, known = (
            forward_flops(sizes.shape, clip.tokens, sizes.text_tokens) for clip in (sizes.usual, sizes.small)
        )
        name = f"{sizes.usual.name}, {FEW} steps"
        # Estimated from the small clip, which is inefficient. This only decides whether the calls before the timed ones
        # fit; they then show the time of the others.
        if bench.time_for(name, _BEFORE * forward * work / known):
            with bench.case(name):
                # At 13B diffusers' loop has been measured above, and another round of it would take many seconds.
                measure_samplers(
                    bench, network, prompt, sizes.usual, FEW, repeats=1 if bench.full else 11, peer=not bench.full
                )
        del network
    with bench.case(_comfyui_case(POCKET_SIZES.medium, FEW)):
        measure_comfyui(bench, POCKET_SIZES.medium, FEW)


class Samplers:
    """Samplers that start from the same noise with the same network and conditioning, for one clip and step number."""

    def __init__(
        self, network: nn.Module, prompt: NullPrompt, clip: Clip, steps: int, generator: torch.Generator
    ) -> None:
        self._network = network
        self._prompt = prompt_on(prompt, generator.device)
        self._steps = steps
        self._dtype = next(network.parameters()).dtype
        self.noise, self._condition = random_clip(clip, generator.device, torch.float32, generator)
        self._bare_inputs = self._inputs(self.noise, torch.full((1,), 0.7, device=generator.device))

    def _inputs(self, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        return network_inputs(x.to(self._dtype), sigma, self._condition, self._prompt)

    @torch.no_grad()
    def ours(self) -> Tensor:
        """Sample with the core's Euler sampler as the trainer does; the latents stay in float32 between steps."""
        model = network_velocity(self._network, self._condition, self._prompt)
        return sample_euler(
            lambda x, sigma: model(x.to(self._dtype), sigma).float(), self.noise, few_step_sigmas(self._steps, SHIFT)
        )

    @torch.no_grad()
    def call(self) -> None:
        """Make one bare call."""
        self._network(**self._bare_inputs, return_dict=False)

    def bare(self) -> None:
        """Make as many bare calls as a sampler makes network calls."""
        for _ in range(self._steps):
            self.call()

    @torch.no_grad()
    def diffusers(self) -> Tensor:
        """Sample with the loop of diffusers' pipelines: its flow-matching scheduler around the network."""
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        uniform = [1 - step / self._steps for step in range(self._steps)]
        scheduler.set_timesteps(sigmas=uniform, device=self.noise.device)
        x = self.noise
        for timestep in scheduler.timesteps:
            inputs = self._inputs(x, timestep.expand(x.shape[0]) / TIMESTEPS)
            velocity = self._network(**inputs, return_dict=False)[0]
            x = scheduler.step(velocity.float(), timestep, x, return_dict=False)[0]
        return x


def measure_samplers(
    bench: Bench, network: nn.Module, prompt: NullPrompt, clip: Clip, steps: int, repeats: int, *, peer: bool = True
) -> float:
    """Measure our sampler and diffusers' loop, each as a multiple of the bare calls.

    Bare calls warm up first. The last of them decides whether the other measurements fit into the time limit; if not,
    the case is recorded as not run.

    Args:
        bench: measures and records.
        network: the transformer.
        prompt: its text conditioning.
        clip: the size of the sample.
        steps: model calls of a sample.
        repeats: timed samples of each loop.
        peer: whether to measure diffusers' loop too.

    Returns:
        The seconds of one bare call; those of the last warm-up call if there was no time for more.
    """
    name = f"{clip.name}, {steps} steps"
    samplers = Samplers(network, prompt, clip, steps, bench.generator(_SEED))
    results: dict[str, Tensor] = {}

    def kept(name: str, sample: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: results.update({name: sample()})

    variants = {"bare forwards": samplers.bare, OURS: kept(OURS, samplers.ours)}
    if peer:
        variants[PEER] = kept(PEER, samplers.diffusers)
    warm_up = bench.compare({"call": samplers.call}, repeats=1, warmup=_BEFORE - 1)["call"].median
    if not bench.time_for(name, repeats * len(variants) * steps * warm_up):
        return warm_up
    timings = bench.compare(variants, repeats, warmup=0)
    bare = timings["bare forwards"].median
    for variant, timing in timings.items():
        row = timing.row() | {"ratio": timing.median / bare}
        if variant == PEER:
            row["relative_difference"] = float((results[PEER] - results[OURS]).std() / results[OURS].std())
        bench.record(f"{name}: {variant}", frames=clip.frames, tokens=clip.tokens, steps=steps, **row)
    return bare / steps


def _comfyui_case(clip: Clip, steps: int) -> str:
    return f"ComfyUI, {clip.name}, {steps} steps"


def measure_comfyui(bench: Bench, clip: Clip, steps: int) -> None:
    """Compare our sampler node with ComfyUI's stock sampler on the same model file, in a separate process."""
    name = _comfyui_case(clip, steps)
    try:
        comfyui = find_comfyui(fetch=False)
    except ComfyUIError:
        # The error's text is not recorded, because it names folders of this machine.
        bench.record(name, error="not run: no ComfyUI, neither at COMFYUI_DIR nor in the cache")
        return
    if not bench.time_for(name, _COMFYUI_SECONDS / 3):
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        job = comfyui_job(folder, clip, steps, _COMFYUI_REPEATS)
        command = [sys.executable, str(_COMFYUI_SIDE), str(comfyui), str(job)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=min(_COMFYUI_SECONDS, bench.seconds_left()),
            )
        except subprocess.TimeoutExpired as late:
            bench.record(name, error=f"not run: ComfyUI did not finish within {late.timeout:.0f} s")
            return
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1:] or ["ComfyUI failed without a message"]
            bench.record(name, error=f"not run: {reason[0][:200]}")
            return
        for row in json.loads((folder / "rows.json").read_text(encoding="utf-8")):
            bench.record(f"{name}: {row.pop('case')}", frames=clip.frames, tokens=clip.tokens, steps=steps, **row)


def comfyui_job(folder: Path, clip: Clip, steps: int, repeats: int) -> Path:
    """Write a pocket-sized model file and the job file for `comfyui_side.py`.

    Returns:
        The path of the job file.
    """
    generator = torch.Generator().manual_seed(_SEED)
    network = random_network(POCKET_SIZES.shape, torch.device("cpu"), torch.float32, generator)
    prompt = random_prompt(POCKET_SIZES.shape, POCKET_SIZES.text_tokens, torch.device("cpu"), generator)
    recipe = Recipe(
        kind="generator",
        steps=steps,
        shift=SHIFT,
        width=clip.width,
        height=clip.height,
        frames=clip.frames,
        fps=24,
    )
    model = folder / "model.safetensors"
    save_checkpoint(model, diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), recipe, prompt)
    job = folder / "job.json"
    facts = {"model": str(model), "latent": clip.latent, "steps": steps, "shift": SHIFT, "repeats": repeats}
    job.write_text(json.dumps(facts | {"rows": str(folder / "rows.json")}), encoding="utf-8")
    return job
