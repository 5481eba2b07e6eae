"""The sampling benchmark: the compared samplers return the same latents, and our sampler adds almost no time."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import sampling
from benchmarks.cases.sampling import measure_comfyui, measure_samplers
from benchmarks.harness import Bench, Row
from benchmarks.models import random_network, random_prompt
from benchmarks.sizes import POCKET_SIZES, Clip
from train.comfyui.server import ComfyUIError, find_comfyui

CLIP = Clip(9, 64, 64)


@pytest.fixture
def bench() -> tuple[Bench, list[Row]]:
    """A bench on the CPU, and the rows that it records."""
    rows: list[Row] = []
    return Bench(torch.device("cpu"), False, rows.append), rows


def test_samplers_agree_and_cost_little_over_the_bare_calls(bench: tuple[Bench, list[Row]]) -> None:
    tools, rows = bench
    generator = tools.generator()
    network = random_network(POCKET_SIZES.shape, tools.device, tools.dtype, generator)
    # With velocities as large as the noise, different samplers would return different latents.
    torch.nn.init.normal_(network.proj_out.weight, std=0.2, generator=generator)
    prompt = random_prompt(POCKET_SIZES.shape, POCKET_SIZES.text_tokens, tools.device, generator)
    forward = measure_samplers(tools, network, prompt, CLIP, steps=4, repeats=9)
    bare, ours, peer = rows
    assert forward == pytest.approx(bare["seconds"] / 4)
    assert peer["relative_difference"] < 1e-4
    assert ours["seconds_min"] < 1.3 * bare["seconds_min"]


class Slow(nn.Module):
    """A fake network with the call times of 13B: the first call takes 5 s more, and short clips are inefficient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.now = 0.0
        self._seen: set[int] = set()

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor]:
        frames = hidden_states.shape[2]
        self.now += {5: 0.152, 21: 3.95}[frames] + (0 if self._seen else 5)
        self._seen.add(frames)
        return (hidden_states[:, :16] * self.scale,)


@pytest.mark.parametrize(("seconds", "done"), [(90, True), (80, False)])
def test_time_for_the_usual_clip_is_reckoned_by_its_own_calls(
    seconds: float, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the speed of the small clip the four steps would take 48 s, but of 90 s only 46 are left."""
    network, rows = Slow(), list[Row]()
    monkeypatch.setattr(sampling, "random_network", lambda *_: network)
    monkeypatch.setattr(sampling, "network_velocity", lambda *_: lambda x, sigma: network(x)[0])
    monkeypatch.setattr(sampling, "measure_comfyui", lambda *_: None)
    sampling.run(Bench(torch.device("cpu"), True, rows.append, seconds, clock=lambda: network.now))
    usual = [row for row in rows if row["case"].startswith("81 frames")]
    if done:
        assert [row["seconds"] for row in usual] == [pytest.approx(4 * 3.95)] * 2
    else:
        (row,) = usual
        assert row["error"] == "not run: out of time (needs about 32 s)"


def test_without_comfyui_the_row_says_so(
    bench: tuple[Bench, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    tools, rows = bench
    measure_comfyui(tools, CLIP, 4)
    (row,) = rows
    assert row["error"].startswith("not run: ")
    assert str(tmp_path) not in row["error"]


@pytest.mark.slow
def test_node_gives_the_stock_samplers_result(
    bench: tuple[Bench, list[Row]], skip_or_fail: Callable[[str, str], NoReturn]
) -> None:
    try:
        find_comfyui()
    except ComfyUIError as error:
        skip_or_fail("comfyui", f"there is no ComfyUI to test against: {error}")
    tools, rows = bench
    measure_comfyui(tools, CLIP, 4)
    stock, ours = rows
    assert stock["note"].startswith("float32 on cpu")
    assert ours["relative_difference"] < 1e-4
    assert ours["ratio"] > 0
