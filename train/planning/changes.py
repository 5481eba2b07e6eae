"""Changes of a configuration that make a training fit, or cheaper; each is computed, none is guessed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from magicdistill_core.errors import ConfigError

from ..config.training import TrainConfig
from ..memory.simulated import Simulation
from .machines import Machines
from .plan import Plan, plan_of

# A change that saves less is not worth a line.
_LEAST = 0.02

Configure = Callable[[list[str]], TrainConfig]


@dataclass(frozen=True)
class Change:
    """A change and the plan with it.

    Attributes:
        settings: what to add to the command, such as `zero.stage=2` or `--gpus 16`.
        plan: the plan with the change.
        note: what else it changes; empty if nothing.
    """

    settings: str
    plan: Plan
    note: str = ""

    def text(self) -> str:
        """Return what the plan with the change is."""
        plan = self.plan
        fits = "fits" if plan.fits else "does not fit"
        parts = [
            f"{plan.needed:.1f} GB, {fits}",
            f"{plan.iteration:,.3g} s an iteration",
            f"{plan.hours:,.3g} h",
            f"{plan.gpu_hours:,.1f} GPU-hours",
        ]
        return "; ".join([*parts, self.note] if self.note else parts)


def changes(
    configure: Configure,
    simulate: Callable[[TrainConfig], Simulation],
    simulation: Simulation,
    machines: Machines,
) -> list[Change]:
    """Return the changes that help, the best first.

    A plan that does not fit is helped by what makes it fit or by what takes less memory. One that fits is helped by
    what takes less time and still fits. Changes with fewer GPU-hours come first.

    Args:
        configure: returns the configuration with further settings.
        simulate: simulates one update of each role of a configuration.
        simulation: the simulation of the configuration as it is.
        machines: the GPUs.
    """
    config = simulation.config
    now = plan_of(simulation, config, machines)
    found = []
    for settings, simulated, note in _candidates(config, now):
        try:
            changed = configure(settings)
            plan = plan_of(simulate(changed) if simulated else simulation, changed, machines)
        except ConfigError:
            # The method, the teacher or the number of GPUs refuses this setting.
            continue
        found.append(Change(" ".join(settings), plan, note))
    more = replace(machines, count=2 * machines.count)
    found.append(Change(f"--gpus {more.count}", plan_of(simulation, config, more), "an update has twice the samples"))
    helpful = [change for change in found if _helps(change.plan, now)]
    return sorted(helpful, key=lambda change: (not change.plan.fits, _per_sample(change.plan)))


def with_settings(settings: Sequence[str], further: Sequence[str]) -> list[str]:
    """Return settings `key=value` with further ones, which replace those of the same key.

    Args:
        settings: the settings as they are.
        further: the settings to add.
    """
    replaced = {setting.partition("=")[0] for setting in further}
    return [setting for setting in settings if setting.partition("=")[0] not in replaced] + list(further)


def _candidates(config: TrainConfig, now: Plan) -> Iterator[tuple[list[str], bool, str]]:
    """Yield settings, whether they change the calls of the networks, and what else they change."""
    model = config.model
    for stage in (1, 2, 3):
        if stage != config.zero.stage:
            yield [f"zero.stage={stage}"], False, ""
    if not now.fits and config.context_parallel == 1:
        yield ["context_parallel=2"], True, "an update has half the samples, unless data.accumulation is doubled"
    if config.generator_ema is not None and not config.generator_ema.on_cpu:
        yield ["generator_ema.on_cpu=true"], False, "each update copies weights to the CPU"
    if not model.activation_checkpointing:
        yield ["model.activation_checkpointing=true"], True, ""
    else:
        yield ["model.activation_checkpointing=false"], True, ""
        if not model.keep_attention:
            yield ["model.keep_attention=true"], True, ""
    if not model.compile:
        fewer = ["zero.stage=2"] if config.zero.stage == 3 else []
        kept = ["model.keep_attention=false"] if model.keep_attention else []
        yield ["model.compile=true", *fewer, *kept], bool(kept), "compiles in the first round"
    if model.keep_attention:
        yield ["model.keep_attention=false"], True, ""
    if config.data.micro_batch > 1:
        accumulation = config.data.accumulation * config.data.micro_batch
        yield ["data.micro_batch=1", f"data.accumulation={accumulation}"], True, ""
    if model.mode == "lora" and not model.base_int8 and not now.fits:
        yield (
            ["model.base_int8=true", *(["zero.stage=2"] if config.zero.stage == 3 else [])],
            True,
            "rounds the teacher",
        )
    if model.mode == "full":
        yield ["model.mode=lora"], True, "trains a LoRA; needs a higher learning rate"


def _helps(changed: Plan, now: Plan) -> bool:
    if now.fits:
        return changed.fits and _per_sample(changed) < (1 - _LEAST) * _per_sample(now)
    return changed.fits or changed.needed < (1 - _LEAST) * now.needed


def _per_sample(plan: Plan) -> float:
    """GPU-seconds of an iteration, for each of its samples."""
    return plan.iteration * plan.machines.count / plan.samples
