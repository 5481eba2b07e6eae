"""Measure one forward of the transformer: by clip size, attention back-end and precision, compiled, and by kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import HEAD_DIM
from train.networks.families.hunyuan_video import network_inputs

from ..attention import (
    FLASH_PACKAGE,
    KERNELS,
    MASKED_CHOICE,
    ON_CPU,
    FixedAttention,
    bare_attention,
    has_flash_package,
    processors,
    set_processors,
)
from ..harness import GB, Bench, Row
from ..low_precision import FP8, Fp8Linear, StoredLinear, has_fp8_units, stored_bytes, with_linears
from ..models import random_clip, random_network, random_prompt
from ..sizes import Clip, attention_flops, forward_flops

_KERNELS_SHOWN = 12
# The first one is what diffusers' transformer does.
_IN_FORWARD = (MASKED_CHOICE, "flash", "cuDNN", FLASH_PACKAGE)
# The time does not depend on the noise level.
_SIGMA = 0.5


def run(bench: Bench) -> None:
    """Measure all cases, the most important first."""
    generator = bench.generator()
    network = random_network(bench.sizes.shape, bench.device, bench.dtype, generator)
    prompt = random_prompt(bench.sizes.shape, bench.sizes.text_tokens, bench.device, generator)
    with torch.inference_mode():
        _sizes(bench, network, prompt)
        _profile(bench, network, prompt)
        _attention(bench, network, prompt)
        _precision(bench, network, prompt)
        # Late, because a kernel that fails at such lengths may leave the GPU unusable for this process.
        for clip in (bench.sizes.usual, bench.sizes.longest):
            _bare_attention(bench, clip)
    # Not in inference mode: the compiler would specialise the blocks to inference tensors.
    with torch.no_grad():
        _compiled(bench, network, prompt)


def forward_of(bench: Bench, network: nn.Module, prompt: NullPrompt, clip: Clip) -> Callable[[], Tensor]:
    """Return a function that makes one forward of a clip of random numbers."""
    x, condition = random_clip(clip, bench.device, bench.dtype, bench.generator(1))
    inputs = network_inputs(x, torch.full((1,), _SIGMA, device=bench.device), condition, prompt)
    return lambda: network(**inputs, return_dict=False)[0]


def rate(bench: Bench, flops: int, seconds: float) -> Row:
    """Return the columns of a speed: TFLOP/s, and its ratio to the speed of a plain matrix product.

    Args:
        bench: states the speed of a plain matrix product, if it was measured.
        flops: the work.
        seconds: the time it took.
    """
    tflops = flops / seconds / 1e12
    columns: Row = {"tflops": tflops}
    if "matmul_tflops" in bench.machine:
        columns["of_matmul"] = tflops / bench.machine["matmul_tflops"]
    return columns


def _sizes(bench: Bench, network: nn.Module, prompt: NullPrompt) -> None:
    for clip in bench.sizes.clips:
        flops = forward_flops(bench.sizes.shape, clip.tokens, bench.sizes.text_tokens)
        # The estimate assumes a third of the speed of a plain product; 300 and 0.03 TFLOP/s if that is not measured.
        guess = 3 * flops / 1e12 / bench.machine.get("matmul_tflops", 300.0 if bench.full else 0.03)
        rounds = 5 if guess < 1 else 2
        if not bench.time_for(clip.name, guess * (rounds + 1)):
            continue
        with bench.case(clip.name):
            timing = bench.compare({"forward": forward_of(bench, network, prompt, clip)}, rounds)["forward"]
            about = {"tokens": clip.tokens + bench.sizes.text_tokens, "pflop": flops / 1e15}
            bench.record(clip.name, **about, **timing.row(), **rate(bench, flops, timing.median))


def _bare_attention(bench: Bench, clip: Clip) -> None:
    group = f"one attention, {clip.name}"
    if not bench.time_for(group, 10):
        return
    tokens = clip.tokens + bench.sizes.text_tokens
    heads = bench.sizes.shape.heads
    generator = bench.generator()
    query, key, value = (
        torch.randn(1, tokens, heads, HEAD_DIM, device=bench.device, dtype=bench.dtype, generator=generator)
        for _ in range(3)
    )
    mask = torch.ones(1, 1, 1, tokens, device=bench.device, dtype=torch.bool)
    usable: dict[str, Callable[[], object]] = {}
    for name in _back_ends(bench, group):
        with bench.case(f"{group}: {name}"):
            attend = bare_attention(name, query, key, value, mask)
            attend()
            bench.synchronize()
            usable[name] = attend
    with bench.case(group):
        flops = attention_flops(bench.sizes.shape.hidden, tokens)
        for name, timing in bench.compare(usable, repeats=5).items():
            bench.record(f"{group}: {name}", tokens=tokens, **timing.row(), **rate(bench, flops, timing.median))


def _back_ends(bench: Bench, group: str) -> list[str]:
    """Return the back-ends that can run here. Record the flash-attn package as not run if it is not installed."""
    names = [name for name, (kernel, _) in KERNELS.items() if bench.device.type == "cuda" or kernel in ON_CPU]
    if bench.device.type == "cuda" and has_flash_package():
        return [*names, FLASH_PACKAGE]
    bench.record(f"{group}: {FLASH_PACKAGE}", error="not run: flash-attn is not installed, or there is no GPU")
    return names


def _attention(bench: Bench, network: nn.Module, prompt: NullPrompt) -> None:
    clip = bench.sizes.medium
    group = f"attention in the forward, {clip.name}"
    if not bench.time_for(group, 20 if bench.full else 5):
        return
    ours = processors(network)
    forward = forward_of(bench, network, prompt, clip)

    def with_processors(chosen: list[Any]) -> Callable[[], object]:
        def once() -> object:
            set_processors(network, chosen)
            return forward()

        return once

    usable: dict[str, Callable[[], object]] = {"as it is": with_processors(ours)}
    for name in (name for name in _back_ends(bench, group) if name in _IN_FORWARD):
        variant = with_processors([FixedAttention(name)] * len(ours))
        with bench.case(f"{group}: {name}"):
            variant()
            bench.synchronize()
            usable[name] = variant
    with bench.case(group):
        flops = forward_flops(bench.sizes.shape, clip.tokens, bench.sizes.text_tokens)
        # No warm-up: every variant has run once already.
        for name, timing in bench.compare(usable, repeats=2, warmup=0).items():
            bench.record(f"{group}: {name}", **timing.row(), **rate(bench, flops, timing.median))
    set_processors(network, ours)


def _profile(bench: Bench, network: nn.Module, prompt: NullPrompt) -> None:
    clip = bench.sizes.medium
    group = f"where the time goes, {clip.name}"
    if not bench.time_for(group, 10):
        return
    on_gpu = bench.device.type == "cuda"
    with bench.case(group):
        forward = forward_of(bench, network, prompt, clip)
        forward()
        bench.synchronize()
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
            forward()
            bench.synchronize()
        times = {
            event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
            for event in trace.key_averages()
        }
        total = sum(time for time, _ in times.values())
        for name, (time, count) in sorted(times.items(), key=lambda item: -item[1][0])[:_KERNELS_SHOWN]:
            bench.record(f"{group}: {name[:300]}", part=time / total, seconds=time / 1e6, calls=count)


def _precision(bench: Bench, network: nn.Module, prompt: NullPrompt) -> None:
    clip = bench.sizes.medium
    group = f"weights, {clip.name}"
    if not bench.time_for(group, 25 if bench.full else 5):
        return
    name = str(bench.dtype).removeprefix("torch.")
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "fp8, expanded at every call": lambda linear: StoredLinear(linear, FP8),
        "int8, expanded at every call": lambda linear: StoredLinear(linear, torch.int8),
    }
    if has_fp8_units(bench.device):
        kinds["fp8, multiplied in fp8"] = Fp8Linear
    else:
        bench.record(f"{group}: fp8, multiplied in fp8", error="not run: needs a GPU with fp8 matrix units")
    usable: dict[str, Callable[[], Tensor]] = {name: forward_of(bench, network, prompt, clip)}
    about: dict[str, Row] = {name: {"weights_gb": stored_bytes(network) / GB}}
    exact = usable[name]().float()
    for kind, replace in kinds.items():
        with bench.case(f"{group}: {kind}"):
            twin = with_linears(network, replace)
            forward = forward_of(bench, twin, prompt, clip)
            difference = (forward().float() - exact).norm() / exact.norm()
            about[kind] = {"weights_gb": stored_bytes(twin) / GB, "relative_error": difference.item()}
            usable[kind] = forward
    with bench.case(group):
        flops = forward_flops(bench.sizes.shape, clip.tokens, bench.sizes.text_tokens)
        for kind, timing in bench.compare(usable, repeats=2, warmup=0).items():
            # All variants are in memory at the same time, so the peak does not describe a single one.
            columns = {key: value for key, value in timing.row().items() if key != "peak_gb"}
            bench.record(f"{group}: {kind}", **about[kind], **columns, **rate(bench, flops, timing.median))


def _compiled(bench: Bench, network: Any, prompt: NullPrompt) -> None:
    clip = bench.sizes.medium
    group = f"compiled blocks, {clip.name}"
    if bench.device.type != "cuda":
        bench.record(group, error="not run: for a CPU the compiler takes longer than all other cases")
        return
    if not bench.time_for(group, 30):
        return
    with bench.case(group):
        forward = forward_of(bench, network, prompt, clip)
        forward()
        for block in (*network.transformer_blocks, *network.single_transformer_blocks):
            block.compile()  # all blocks of one kind share one graph
        first = bench.compare({"first": forward}, repeats=1, warmup=0)["first"].median

        def eager() -> object:
            with torch.compiler.set_stance("force_eager"):
                return forward()

        timings = bench.compare({"eager": eager, "compiled": forward}, repeats=3)
        flops = forward_flops(bench.sizes.shape, clip.tokens, bench.sizes.text_tokens)
        for name, timing in timings.items():
            extra = {"first_call_seconds": first} if name == "compiled" else {}
            bench.record(f"{group}: {name}", **timing.row(), **rate(bench, flops, timing.median), **extra)
