"""The counted calls are those that the methods make."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.flow import Velocity
from magicdistill_core.recipe import Recipe
from tests.makers import hunyuan_shape, wan_shape
from train.config.reading import load_config
from train.engines.pair_generator import PairGenerator
from train.methods import build_method
from train.methods.draws import Draws
from train.pocket.tables.budget import Calls, blocks_of, calls_per_round, rounds_within, warmup_calls

PRESETS = Path(__file__).parents[4] / "train" / "presets"
BLOCKS, PAIR_STEPS = (1, 9), 4
SHARE = 2 / 10


class CountedNetworks:
    """All networks of a training, each a single weight; every call is counted."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(0.1))
        self.forward = self.backward = 0.0
        recipe = Recipe(kind="generator", steps=PAIR_STEPS, shift=5.0, width=32, height=32, frames=5, fps=24)
        frozen = SimpleNamespace(velocity=lambda condition, role: self._velocity(trained=False))
        self.pair_generator = PairGenerator(frozen, recipe)  # type: ignore[arg-type]

    def _pass(self, x: Tensor, forward: float, backward: float) -> Tensor:
        self.forward += forward
        out = self.weight * x
        if out.requires_grad:

            def count(gradient: Tensor) -> None:
                self.backward += backward

            out.register_hook(count)
        return out

    def _velocity(self, *, trained: bool = True) -> Velocity:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                return self._pass(x, 1, 1)

        return velocity

    def generator_velocity(self, condition: object) -> Velocity:
        return self._velocity()

    def score(self, condition: object, weight: float, *, unconditional: bool = False) -> Velocity:
        return self._velocity()

    def teacher(self, condition: object) -> Velocity:
        return self._velocity(trained=False)

    def discriminator_logits(self, condition: object) -> Velocity:
        def logits(x: Tensor, sigma: Tensor) -> Tensor:
            # The gradient of the generator's loss reaches the input; the discriminator's own ends at its block.
            return self._pass(x, SHARE, SHARE if x.requires_grad else 0.1).flatten(1).mean(1)

        return logits


class EveryExit(Draws):
    """Draws whose rollouts end at each level in turn."""

    def exits(self, steps: int) -> Iterator[None]:
        for self.level in range(steps):
            yield

    def exit_index(self, update: int, levels: int) -> int:
        return self.level


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("lcm", ()),
        ("lcm", ("method.target=student",)),
        ("dmd", ()),
        ("dmd2", ()),
        ("dmd2", ("method.discriminator.r1=0", "method.discriminator.updates=2")),
        ("w2s", ()),
        ("w2s", ("schedule.steps=1", "method.fake_updates=2")),
        ("supervised", ()),
        ("one_step", ()),
    ],
)
def test_calls_of_a_round_are_those_that_the_method_makes(preset: str, changes: tuple[str, ...]) -> None:
    config = load_config(PRESETS / f"pocket_{preset}.yaml", changes)
    networks, draws = CountedNetworks(), EveryExit(0)
    method = build_method(config, networks, draws, torch.device("cpu"))  # type: ignore[arg-type]
    data = torch.randn(2, 16, 2, 4, 4)
    for _ in draws.exits(config.schedule.steps):
        for update, role in enumerate(method.order):
            images = StartImage(data[:, :, :1])
            batch = method.micro_batch(CONCAT, images, tuple(data.shape[1:]), update, [0, 1], lambda: data)
            part = method.loss(role, batch)
            while part is not None:
                part.value.backward()
                part = part.after() if part.after is not None else None
    expected = calls_per_round(config, BLOCKS, PAIR_STEPS) * config.schedule.steps
    assert networks.forward == pytest.approx(expected.forward)
    assert networks.backward == pytest.approx(expected.backward)


def test_a_round_of_the_paper_s_method_has_22_calls() -> None:
    # Five updates of the fake branch with 2.5 + 1 calls each; the generator's 2.5, and two scores.
    assert calls_per_round(load_config(PRESETS / "pocket_w2s.yaml"), BLOCKS, 0) == Calls(22, 6)


def test_other_methods_and_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"calls of the method sft .* lcm, dmd"):
        calls_per_round(load_config(PRESETS / "pocket_sft.yaml"), BLOCKS, 0)
    with pytest.raises(ConfigError, match="need a pocket teacher"):
        blocks_of(wan_shape())
    assert blocks_of(hunyuan_shape()) == (1, 1)


def test_the_warm_up_of_the_fake_branch_counts() -> None:
    config = load_config(PRESETS / "pocket_w2s.yaml", ["method.fake_warmup=4"])
    assert warmup_calls(config) == Calls(4 * 5 * 3.5, 4 * 5)
    assert warmup_calls(load_config(PRESETS / "pocket_lcm.yaml")) == Calls(0)


def test_the_number_of_rounds_is_the_nearest_one() -> None:
    assert [rounds_within(budget, Calls(10), Calls(22)) for budget in (1, 42, 44, 1550)] == [1, 1, 2, 70]
