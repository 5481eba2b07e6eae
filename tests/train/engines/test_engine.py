"""DeepSpeed training against plain PyTorch on the same global batch."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import add_noise, few_step_sigmas
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.lora_file import load_lora
from magicdistill_core.null_prompt import load_null_prompt
from magicdistill_core.objectives.distribution_matching import Guidance, fake_loss, generator_loss
from magicdistill_core.objectives.rollout import rollout
from train.config.reading import parse_config
from train.config.training import TrainConfig
from train.data.dataset import LatentDataset
from train.methods.draws import Draws
from train.networks.discriminator import Discriminator
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import load_network
from train.networks.roles import add_branch, branch_modules


class PlainPyTorch:
    """The same distillation in plain PyTorch: merged weights with `functional_call`, and one optimizer per role."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.teacher = load_checkpoint(config.model.teacher)
        self.prompt = self.teacher.null_prompt
        self.network = load_network(self.teacher)
        self.base = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.fake = self._branch("fake", config.model.fake_branch, config.seed + 1)
        if config.model.mode == "lora":
            self.generator = self._branch("generator", config.model.generator_branch, config.seed)
        else:
            self.generator = {name: p.clone().requires_grad_() for name, p in self.base.items()}
        discriminator = config.method.discriminator
        self.discriminator = (
            Discriminator(load_network(self.teacher), config.seed + 2) if discriminator is not None else None
        )
        self.trained = {"fake": self.fake, "generator": self.generator}
        settings = {"fake": config.fake_optimizer, "generator": config.generator_optimizer}
        if self.discriminator is not None:
            self.trained["discriminator"] = dict(self.discriminator.named_parameters())
            settings["discriminator"] = discriminator.optimizer
        self.clips = {name: chosen.clip for name, chosen in settings.items()}
        self.optimizers = {name: self._optimizer(self.trained[name], chosen) for name, chosen in settings.items()}
        self.negative = None
        if config.model.negative_prompt is not None:
            self.negative = load_null_prompt(config.model.negative_prompt)
        self.dataset = LatentDataset(config.data.dataset)
        self.draws = Draws(config.seed)
        self.sigmas = few_step_sigmas(config.schedule.steps, config.schedule.shift)

    def _branch(self, name: str, size, seed: int) -> dict[str, Tensor]:
        network = load_network(self.teacher)
        add_branch(network, name, size.rank, size.alpha, seed)
        marker = re.compile(rf"\.lora_([AB])\.{name}\.weight$")
        return {
            marker.sub(r".\1", key): p.detach().clone().requires_grad_()
            for key, p in network.named_parameters()
            if marker.search(key)
        }

    @staticmethod
    def _optimizer(parameters: dict[str, Tensor], settings) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            parameters.values(), lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=0.0
        )

    def _merged(self, branch: dict[str, Tensor], weight: float, size) -> dict[str, Tensor]:
        merged = dict(self.base)
        for key in [key[:-2] for key in branch if key.endswith(".A")]:
            delta = branch[f"{key}.B"] @ branch[f"{key}.A"]
            merged[f"{key}.weight"] = merged[f"{key}.weight"] + weight * size.alpha / size.rank * delta
        return merged

    def _velocity(self, weights: dict[str, Tensor], condition: Tensor, prompt: NullPrompt | None = None):
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            inputs = network_inputs(x, sigma, condition, prompt or self.prompt)
            return functional_call(self.network, weights, kwargs=inputs | {"return_dict": False})[0]

        return velocity

    def _logit(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        return self.discriminator(self.network.features(**network_inputs(x, sigma, condition, self.prompt)))

    def _loss(self, role: str, z: Tensor, condition: Tensor, positions: list[int], update: int) -> Tensor:
        shape = (16, *condition.shape[2:])
        model, method, schedule = self.config.model, self.config.method, self.config.schedule
        weights = self._merged(self.generator, 1.0, model.generator_branch) if model.mode == "lora" else self.generator
        noise, eps, eps_judged, eps_supervised, moved = (
            self.draws.noise(purpose, update, positions, shape)
            for purpose in ("rollout", "loss", "judged", "supervision", "r1")
        )
        level, judged = (
            self.draws.sigma(purpose, update, positions, schedule.shift) for purpose in ("level", "judged")
        )
        x_hat = rollout(
            self._velocity(weights, condition),
            noise,
            self.sigmas,
            self.draws.exit_index(update, self.config.schedule.steps),
            "euler",
            [],
        )
        strong = self._velocity(self._merged(self.fake, 1.0, model.fake_branch), condition)
        if role == "fake":
            return fake_loss(x_hat, eps, level, strong)
        discriminator, supervision = method.discriminator, method.supervision
        if role == "discriminator":
            noised, samples = (add_noise(clean, eps_judged, judged) for clean in (z, x_hat.detach()))
            real, fake, near = (
                self._logit(x, judged, condition) for x in (noised, samples, noised + discriminator.r1_noise * moved)
            )
            return (softplus(-real) + softplus(fake) + discriminator.r1 * (real - near) ** 2).mean()
        weak_weights = self._merged(self.fake, method.a_weak, model.fake_branch)
        guidance = None
        if self.negative is not None:
            guidance = Guidance(method.guidance_scale, self._velocity(weak_weights, condition, self.negative))
        weak = self._velocity(weak_weights, condition)
        loss = generator_loss(x_hat, eps, level, weak, strong, normalize=True, guidance=guidance).loss
        if supervision is not None:
            nodes = self.draws.each(
                "node", update, positions, lambda generator: torch.randint(schedule.steps, (), generator=generator)
            )
            s = self.sigmas[nodes]
            x_s = add_noise(z, eps_supervised, s)
            x0 = x_s - s.reshape(-1, 1, 1, 1, 1) * self._velocity(weights, condition)(x_s, s)
            loss = loss + supervision.weight * (((x0 - z) ** 2 + supervision.xi**2).sqrt() - supervision.xi).mean()
        if discriminator is not None and update // len(self.order) >= discriminator.warmup:
            # One backward through discriminator, features and generator together.
            logit = self._logit(add_noise(x_hat, eps_judged, judged), judged, condition)
            loss = loss + discriminator.weight * softplus(-logit).mean()
        return loss

    @property
    def order(self) -> list[str]:
        method = self.config.method
        judged = ["discriminator"] * method.discriminator.updates if method.discriminator is not None else []
        return ["fake"] * method.fake_updates + judged + ["generator"]

    def train(self, samples: int) -> None:
        method = self.config.method
        for step in range(-method.fake_warmup, self.config.updates):
            order = self.order if step >= 0 else ["fake"] * method.fake_updates
            for place, role in enumerate(order):
                update = step * len(order) + place
                positions = list(range(samples))
                indices = self.draws.sample_indices(update, positions, samples, len(self.dataset))
                batch = self.dataset.batch(indices)
                condition = concat_condition(batch.image_latents, 2)
                self._loss(role, batch.latents, condition, positions, update).backward()
                torch.nn.utils.clip_grad_norm_(self.trained[role].values(), self.clips[role])
                self.optimizers[role].step()
                for optimizer in self.optimizers.values():
                    optimizer.zero_grad()

    def branch_file(self, branch: dict[str, Tensor], name: str, size) -> dict[str, Tensor]:
        state = {f"{key[:-2]}.lora_{key[-1]}.{name}.weight": value.detach() for key, value in branch.items()}
        modules = branch_modules(state, name, size.alpha, self.teacher.shape.hidden)
        return {module: low_rank.delta(1.0) for module, low_rank in modules.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor] | None) -> None:
    """Equal to 2 % of the change since the start, and not unchanged."""
    assert found.keys() == expected.keys()
    for key in expected:
        moved = expected[key] - start[key] if start is not None else expected[key]
        error = (found[key] - expected[key]).norm() / moved.norm().clamp_min(1e-12)
        assert error < 2e-2, (key, float(error))
    total = sum(float((expected[k] - (start[k] if start else 0)).norm()) for k in expected)
    assert total > 1e-3


def check(config: TrainConfig, run: Path, batch: int) -> None:
    oracle = PlainPyTorch(config)
    oracle.train(batch)
    folder = run / "checkpoints" / "step-000002"
    hidden = oracle.teacher.shape.hidden
    model = config.model

    def deltas(name: str) -> dict[str, Tensor]:
        branches = load_lora(folder / name, hidden).branches
        return {module: branch.delta(1.0) for module, branch in branches.items()}

    assert_close(deltas("fake_lora.safetensors"), oracle.branch_file(oracle.fake, "fake", model.fake_branch), None)
    if model.mode == "lora":
        expected = oracle.branch_file(oracle.generator, "generator", model.generator_branch)
        assert_close(deltas("generator_lora.safetensors"), expected, None)
    else:
        expected = diffusers_to_file(HUNYUAN_VIDEO, {k: v.detach() for k, v in oracle.generator.items()})
        found = load_checkpoint(folder / "generator.safetensors").state
        assert_close(found, expected, oracle.teacher.state)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_equal_plain_pytorch(
    tmp_path: Path, tiny_config: Callable[..., dict], train_runs: Callable[..., object]
) -> None:
    """ZeRO-2 in both modes, ZeRO-3 in both modes, ZeRO-0, on 2 processes x accumulation 2 = global batch 4."""
    cases = {}
    for mode, stage, checkpointing in [
        ("full", 2, False),
        ("lora", 2, True),
        ("full", 3, False),
        ("lora", 3, True),
        ("lora", 0, False),
    ]:
        run = tmp_path / f"{mode}-{stage}"
        config = tiny_config(run, zero={"stage": stage}, method={"fake_updates": 2, "fake_warmup": int(stage == 2)})
        # Under ZeRO-3 the weights are gathered again for the recomputation; attention outputs are kept.
        config["model"] |= {
            "mode": mode,
            "activation_checkpointing": checkpointing,
            "keep_attention": checkpointing and stage == 3,
        }
        cases[run] = config
    train_runs(2, list(cases.values()))
    for run, config in cases.items():
        check(parse_config(config, run.name), run, batch=4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_discriminator_supervision_and_guidance_equal_plain_pytorch(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    negative_prompt: Path,
    train_runs: Callable[..., object],
) -> None:
    """A discriminator, supervision and guidance; plain PyTorch computes them as one loss with one backward."""
    cases = {}
    for mode, stage, name in [("full", 2, "dmd2"), ("lora", 3, "w2s")]:
        run = tmp_path / f"{name}-{stage}"
        discriminator = {"optimizer": {"lr": 1e-3, "clip": 0.5}, "weight": 0.5, "warmup": 1, "r1": 10.0}
        method = {"name": name, "fake_updates": 1, "discriminator": discriminator}
        config = tiny_config(run, zero={"stage": stage}, method=method)
        config["model"] |= {"mode": mode, "activation_checkpointing": mode == "lora"}
        if mode == "full":
            config["method"] |= {"supervision": {"weight": 0.25}, "guidance_scale": 2.0}
            config["model"] |= {"negative_prompt": str(negative_prompt)}
        cases[run] = config
    train_runs(2, list(cases.values()))
    for run, config in cases.items():
        check(parse_config(config, run.name), run, batch=4)
