"""Methods without a fake branch: their training against plain PyTorch, and the measure that each improves."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import few_step_sigmas, sample_euler
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.lora_file import load_lora
from magicdistill_core.null_prompt import load_null_prompt, null_prompt_tensors
from magicdistill_core.objectives.noise_levels import logit_normal_sigma
from train.config.reading import parse_config
from train.config.training import TrainConfig
from train.data.dataset import LatentDataset
from train.methods.draws import Draws
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import load_network, network_velocity
from train.networks.roles import add_branch, branch_modules

BATCH = 4  # 2 processes x accumulation 2
METHODS = {
    "sft": {"name": "sft", "level_mean": -0.2, "level_std": 0.8},
    "sft-mixed": {
        "name": "sft",
        "level_mean": -0.2,
        "level_std": 0.8,
        "uniform_levels": 0.5,
        "channel_weights": [0.5 + channel for channel in range(16)],
    },
    "lcm-teacher": {"name": "lcm", "ode_steps": 6, "huber_width": 0.05},
    "lcm-student": {"name": "lcm", "ode_steps": 6, "huber_width": 0.05, "target": "student"},
    "cfg": {"name": "cfg", "scale_min": 2.0, "scale_max": 7.0, "weight": 0.5},
}


class PlainPyTorch:
    """The same training in plain PyTorch, with explicit losses."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.teacher = config.method.prepared(load_checkpoint(config.model.teacher), config.model.mode)
        self.network = load_network(self.teacher)
        self.base = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.trained = self._branch() if config.model.mode == "lora" else self._copy()
        settings = config.generator_optimizer
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), settings.lr, settings.betas, settings.eps, weight_decay=settings.weight_decay
        )
        self.dataset = LatentDataset(config.data.dataset)
        self.draws = Draws(config.seed)

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.clone().requires_grad_() for name, p in self.base.items()}

    def _branch(self) -> dict[str, Tensor]:
        network, size = load_network(self.teacher), self.config.model.generator_branch
        add_branch(network, "generator", size.rank, size.alpha, self.config.seed)
        marker = re.compile(r"\.lora_([AB])\.generator\.weight$")
        return {
            marker.sub(r".\1", key): p.detach().clone().requires_grad_()
            for key, p in network.named_parameters()
            if marker.search(key)
        }

    def weights(self) -> dict[str, Tensor]:
        if self.config.model.mode == "full":
            return self.trained
        size, merged = self.config.model.generator_branch, dict(self.base)
        for key in [key[:-2] for key in self.trained if key.endswith(".A")]:
            delta = size.alpha / size.rank * self.trained[f"{key}.B"] @ self.trained[f"{key}.A"]
            merged[f"{key}.weight"] = merged[f"{key}.weight"] + delta
        return merged

    def velocity(
        self,
        weights: dict[str, Tensor],
        x: Tensor,
        sigma: Tensor,
        condition: Tensor,
        prompt: NullPrompt | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        inputs = network_inputs(x, sigma, condition, prompt or self.teacher.null_prompt, guidance)
        return functional_call(self.network, weights, kwargs=inputs | {"return_dict": False})[0]

    def loss(self, z: Tensor, eps: Tensor, condition: Tensor, positions: list[int], update: int) -> Tensor:
        method, shift = self.config.method, self.config.schedule.shift

        def wide(sigma: Tensor) -> Tensor:
            return sigma.reshape(-1, 1, 1, 1, 1)

        if method.name == "sft":
            draw = self.draws.generator
            sigma = torch.cat([self.sft_level(draw("level", update, p)) for p in positions])
            x = (1 - wide(sigma)) * z + wide(sigma) * eps
            error = (self.velocity(self.weights(), x, sigma, condition) - (eps - z)).pow(2)
            weights = torch.tensor(method.channel_weights or [1.0] * 16)
            return (error * (weights * 16 / weights.sum()).view(1, 16, 1, 1, 1)).mean()
        if method.name == "cfg":
            sigma = self.draws.sigma("level", update, positions, shift)
            x = (1 - wide(sigma)) * z + wide(sigma) * eps
            uniform = [torch.rand((), generator=self.draws.generator("guidance", update, p)) for p in positions]
            scale, one = 2 + 5 * torch.stack(uniform), torch.ones(len(positions))
            negative = load_null_prompt(self.config.model.negative_prompt)
            with torch.no_grad():
                cond = self.velocity(self.base, x, sigma, condition, guidance=one)
                none = self.velocity(self.base, x, sigma, condition, negative, one)
            goal = wide(scale) * cond - wide(scale - 1) * none
            guided = self.velocity(self.weights(), x, sigma, condition, guidance=scale)
            plain = self.velocity(self.weights(), x, sigma, condition, guidance=one)
            return 0.5 * (guided - goal).pow(2).mean() + (plain - (eps - z)).pow(2).mean()
        sigmas = few_step_sigmas(method.ode_steps, shift)
        nodes = [int(torch.randint(6, (), generator=self.draws.generator("node", update, p))) for p in positions]
        sigma, after = (torch.stack([sigmas[node + k] for node in nodes]) for k in (0, 1))
        x = (1 - wide(sigma)) * z + wide(sigma) * eps
        target = self.base if method.target == "teacher" else {k: w.detach() for k, w in self.weights().items()}
        with torch.no_grad():
            x_after = x + wide(after - sigma) * self.velocity(self.base, x, sigma, condition)
            goal = x_after - wide(after) * self.velocity(target, x_after, after, condition)
        error = x - wide(sigma) * self.velocity(self.weights(), x, sigma, condition) - goal
        return (torch.sqrt(error**2 + 0.05**2) - 0.05).mean()

    def sft_level(self, generator: torch.Generator) -> Tensor:
        """A level `[1]`: logit-normal, or in a share of the draws uniform. A further number decides which."""
        method, shift = self.config.method, self.config.schedule.shift
        normal = logit_normal_sigma(1, shift, generator, -0.2, 0.8)
        kind, uniform = torch.rand(2, generator=generator)
        return shift * uniform[None] / (1 + (shift - 1) * uniform) if kind < method.uniform_levels else normal

    def train(self) -> None:
        for update in range(self.config.updates):
            positions = list(range(BATCH))
            batch = self.dataset.batch(self.draws.sample_indices(update, positions, BATCH, len(self.dataset)))
            eps = self.draws.noise("loss", update, positions, batch.latents.shape[1:])
            condition = concat_condition(batch.image_latents, batch.latents.shape[2])
            self.optimizer.zero_grad()
            self.loss(batch.latents, eps, condition, positions, update).backward()
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.generator_optimizer.clip)
            self.optimizer.step()


def assert_as_trained(config: TrainConfig, folder: Path) -> None:
    """The changes of the exported weights equal those of the oracle, to 2 % of the change."""
    oracle = PlainPyTorch(config)
    oracle.train()
    if config.model.mode == "lora":
        found = load_lora(folder / "generator_lora.safetensors", oracle.teacher.shape.hidden).branches
        state = {f"{key[:-2]}.lora_{key[-1]}.generator.weight": p.detach() for key, p in oracle.trained.items()}
        size = config.model.generator_branch
        expected = branch_modules(state, "generator", size.alpha, oracle.teacher.shape.hidden)
        moves = [(found[key].delta(1.0), expected[key].delta(1.0)) for key in expected]
    else:
        state = load_checkpoint(folder / "generator.safetensors").state
        weights = diffusers_to_file(HUNYUAN_VIDEO, {key: p.detach() for key, p in oracle.trained.items()})
        start = oracle.teacher.state  # with the inputs that the method adds
        moves = [(state[key] - start[key], weights[key] - start[key]) for key in weights]
    assert sum(float(move.norm()) for _, move in moves) > 1e-3
    for found_move, expected_move in moves:
        assert (found_move - expected_move).norm() <= 2e-2 * expected_move.norm().clamp_min(1e-12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_equal_plain_pytorch(
    tmp_path: Path, tiny_config: Callable[..., dict], train_runs: Callable[..., object]
) -> None:
    negative = tmp_path / "negative.safetensors"
    save_file(null_prompt_tensors(NullPrompt(torch.ones(1, 2, 16), torch.zeros(1, 768))), negative)
    cases = {}
    for method, mode, stage in [
        ("sft", "full", 2),
        ("sft-mixed", "lora", 3),
        ("lcm-teacher", "lora", 2),
        ("lcm-student", "full", 2),
        ("cfg", "full", 3),
    ]:
        run = tmp_path / f"{method}-{mode}-{stage}"
        cases[run] = tiny_config(run, method=METHODS[method], zero={"stage": stage})
        cases[run]["model"] |= {"mode": mode} | ({"negative_prompt": str(negative)} if method == "cfg" else {})
        del cases[run]["fake_optimizer"]
    train_runs(2, list(cases.values()))
    for run, config in cases.items():
        assert_as_trained(parse_config(config, run.name), run / "checkpoints" / "step-000002")


def _flow_error(checkpoint: Checkpoint, latents: Tensor) -> float:
    """Mean squared error of the velocity on clips outside the training set, at fixed noise."""
    velocity = network_velocity(load_network(checkpoint), _condition(latents), checkpoint.null_prompt)
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(21))
    errors = []
    with torch.no_grad():
        for sigma in (0.3, 0.6, 0.9):
            x = (1 - sigma) * latents + sigma * eps
            errors.append((velocity(x, torch.full((len(x),), sigma)) - (eps - latents)).pow(2).mean())
    return float(torch.stack(errors).mean())


def _condition(latents: Tensor) -> Tensor:
    return concat_condition(latents[:, :, :1], latents.shape[2])


def _sample(checkpoint: Checkpoint, latents: Tensor, steps: int) -> Tensor:
    velocity = network_velocity(load_network(checkpoint), _condition(latents), checkpoint.null_prompt)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(22))
    with torch.no_grad():
        return sample_euler(velocity, noise, few_step_sigmas(steps, 5.0))


def _guided_error(teacher: Checkpoint, student: Checkpoint, negative: NullPrompt, latents: Tensor) -> float:
    """Root mean squared distance of one call of the student to the teacher's two, over scales and levels."""
    condition, scales = _condition(latents), (2.0, 4.0, 6.0)
    none, cond = (
        network_velocity(load_network(teacher), condition, prompt) for prompt in (negative, teacher.null_prompt)
    )
    errors = []
    with torch.no_grad():
        for sigma in (0.3, 0.6, 0.9):
            level = torch.full((len(latents),), sigma)
            eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(23))
            x = (1 - sigma) * latents + sigma * eps
            for scale in scales:
                ours = network_velocity(load_network(student), condition, teacher.null_prompt, scale)(x, level)
                goal = none(x, level) + scale * (cond(x, level) - none(x, level))
                errors.append((ours - goal).pow(2).mean())
    return float(torch.stack(errors).mean().sqrt())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_method_improves_its_own_measure(
    tmp_path: Path,
    teacher_file: Path,
    dataset_folder: Path,
    tiny_config: Callable[..., dict],
    train_runs: Callable[..., object],
) -> None:
    """A teacher is fine-tuned, the other methods start from its export, and all improve their measure."""
    negative = NullPrompt(torch.ones(1, 2, 16), torch.zeros(1, 768))
    save_file(null_prompt_tensors(negative), tmp_path / "negative.safetensors")
    tuned = _exported(tmp_path / "sft")

    def config(name: str, method: dict, lr: float, teacher: Path, **model: object) -> dict:
        run = tiny_config(
            tmp_path / name,
            method=method,
            updates=60,
            data={"dataset": str(dataset_folder), "micro_batch": 12},
            generator_optimizer={"lr": lr, "betas": [0.9, 0.99], "warmup": 5},
        )
        run["model"] |= {"teacher": str(teacher)} | model
        del run["fake_optimizer"]
        return run

    train_runs(
        1,
        [
            config("sft", {"name": "sft"}, 3e-3, teacher_file) | {"generator_ema": {"decay": 0.9}},
            config("lcm-teacher", {"name": "lcm"}, 3e-4, tuned),
            config("lcm-student", {"name": "lcm", "target": "student"}, 3e-5, tuned),
            config("cfg", {"name": "cfg"}, 3e-3, tuned, negative_prompt=str(tmp_path / "negative.safetensors")),
        ],
    )
    latents = torch.randn(24, 16, 2, 4, 4, generator=torch.Generator().manual_seed(20))
    teacher = load_checkpoint(tuned)
    assert _flow_error(teacher, latents) < 0.9 * _flow_error(load_checkpoint(teacher_file), latents)
    truth = _sample(teacher, latents, 28)
    before = (_sample(teacher, latents, 4) - truth).pow(2).mean()
    for name, share in (("lcm-teacher", 0.95), ("lcm-student", 0.75)):
        student = load_checkpoint(_exported(tmp_path / name))
        assert (_sample(student, latents, 4) - truth).pow(2).mean() < share * before, name
        assert student.recipe is not None
        assert (student.recipe.kind, student.recipe.method) == ("generator", "lcm")
    guided = load_checkpoint(_exported(tmp_path / "cfg"))
    one_call, unguided = (_guided_error(teacher, c, negative, latents) for c in (guided, teacher))
    assert one_call < 0.85 * unguided
    assert guided.recipe is not None
    assert (guided.recipe.kind, guided.recipe.embedded_guidance) == ("teacher", 6.0)


def _exported(run: Path) -> Path:
    return run / "checkpoints" / "step-000060" / "generator.safetensors"
