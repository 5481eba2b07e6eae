"""The training loop: rounds of updates, logging, samples, checkpoints."""

import logging
import time
from dataclasses import dataclass

import torch

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.recipe import Recipe

from ..config.training import TrainConfig
from ..distributed import (
    beginning_together,
    bound_waiting,
    first_error,
    init_distributed,
    is_lost_process,
    is_main,
    mean_over_processes,
    rank,
    world_size,
)
from ..engines.ema import GeneratorEma
from ..engines.networks import build_networks
from ..engines.teacher import Teacher, load_teacher
from ..memory.training import memory_of, tell_memory
from ..methods import MicroBatch, build_method
from ..methods.draws import Draws
from ..run_folder import CONFIG_FILE, VALIDATION
from ..watch.guard import Verdict
from ..watch.log import RunLog, check_trackers, wandb_tracker
from ..watch.report import write_report
from ..watch.validation import Validation
from .disk_space import check_room, state_bytes
from .machine import gpu_bytes, machine_facts
from .preflight import begin, look
from .signals import StopRequest
from .state import GuardError, RunState
from .trained_files import TrainedFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training ended: after how many updates, and by which signal if it was told to stop."""

    updates: int
    stopped_by: str | None


class RunError(MagicDistillError):
    """A run that ended before its time, for a reason outside its configuration."""


class Trainer:
    """One run: the engines, the data, and where the run stands."""

    def __init__(self, config: TrainConfig, *, resume: bool) -> None:
        self.config = config
        self.device = init_distributed(config.timeout)
        self.inputs = look(config, resume=resume)
        self.dataset = self.inputs.dataset
        with beginning_together():
            loaded = load_teacher(config)
            teacher = loaded.checkpoint
            self.family = teacher.family()
            self.prompt = loaded.prompt
            self.shape = teacher.shape
            self.dataset.check_family(self.family)
            self.draws = Draws(config.seed)
            self.recipe = self._recipe()
            # Before 13B are loaded; the VAE and the sum are the main process' alone.
            self.validation = Validation(
                config.validation, config.schedule, self.dataset, self.family, config.run / VALIDATION, self.device
            )
            if is_main():
                self._tell_memory(loaded)
        self.networks = build_networks(config, teacher, self.prompt, self.device, loaded.negative)
        bound_waiting(config.timeout)
        self.method = build_method(config, self.networks, self.draws, self.device)
        self.ema = None
        if config.generator_ema is not None:
            self.ema = GeneratorEma(self.networks.generator.engine, config.generator_ema)
        self.files = TrainedFiles(
            config.model,
            self.networks,
            self.family.architecture.layout,
            teacher.shape.hidden,
            self.recipe,
            "folder" if self.inputs.teacher.is_dir() else None,
            self.prompt,
            self.ema,
        )
        self.state = RunState(config, self.networks.engines, self.draws, self.files.write)
        if self.ema is not None:
            self.state.saved_states["generator_ema"] = self.ema
        if resume:
            self.state.resume()
        self.checkpoint_bytes = state_bytes(self.state.saved_states) + self.files.bytes()
        if self.state.updates < config.updates:
            check_room(config.run, self.checkpoint_bytes, config.checkpoint.keep)
        # Only now: a resume that is refused leaves the run's record as it was.
        begin(config, self.inputs)

    def _recipe(self) -> Recipe:
        schedule, dataset = self.config.schedule, self.dataset
        fields = {
            "kind": "generator",
            "family": self.family.architecture.name,
            "i2v_mode": self.family.i2v_mode,
            "steps": schedule.steps,
            "shift": schedule.shift,
            "sampler": schedule.sampler,
            "width": dataset.width,
            "height": dataset.height,
            "frames": dataset.frames,
            "fps": dataset.fps,
            "teacher_hash": self.inputs.teacher_hash,
        }
        if self.shape.guidance_embed:
            fields["embedded_guidance"] = self.config.model.embedded_guidance
        return Recipe.model_validate(fields | self.config.method.recipe_fields())

    def _tell_memory(self, teacher: Teacher) -> None:
        """On a GPU, what the run will take of its memory."""
        room = gpu_bytes(self.device)
        if room is None:
            return
        try:
            memory = memory_of(self.config, teacher, self.dataset.index.tensor_shapes(), world_size())
        except MagicDistillError:
            raise
        except Exception:
            # A run that would work does not end because it could not be foretold.
            logger.warning("What this run will take of a GPU's memory could not be computed", exc_info=True)
        else:
            tell_memory(memory, room)

    def train(self) -> Outcome:
        """Train to the configured number of updates, or until told to stop, saving and sampling on the way."""
        config, state = self.config, self.state
        with StopRequest() as stop, self._log() as log:
            facts = machine_facts() | {"checkpoint_bytes": self.checkpoint_bytes}
            if state.changed:
                facts["changed"] = state.changed
            log.event("resumed" if state.updates else "started", state.updates, **facts)
            while state.updates < config.updates:
                began = time.monotonic()
                metrics = self._round()
                verdict, new = state.advance(metrics)
                log.log(state.updates, metrics | state.guard.ratios(), time.monotonic() - began)
                for finding in new:
                    log.event("warning", state.updates, finding=finding)
                    logger.warning("Update %d: %s", state.updates, finding)
                if verdict.act and self._act(verdict, log):
                    continue
                stopped_by = first_error(stop.name)
                if state.due() or stopped_by:
                    state.save()
                    log.event("saved", state.updates)
                if stopped_by:
                    log.event("stopped", state.updates, by=stopped_by)
                    return Outcome(state.updates, stopped_by)
                # After the save, which holds more than samples to be looked at.
                if self.validation.due(state.updates):
                    with self.files.exported_weights():
                        problem = self.validation.run(self.networks, state.updates)
                    if problem is not None:
                        log.event("warning", state.updates, finding=problem)
            log.event("finished", state.updates)
        return Outcome(state.updates, None)

    def _log(self) -> RunLog:
        config = self.config
        tracker = wandb_tracker(config)
        return RunLog(config.run, config.method.name, config.updates, self.state.updates, self.method.headline, tracker)

    def _act(self, verdict: Verdict, log: RunLog) -> bool:
        """Do what is configured when the guard says that a run must not go on; whether the run went back.

        Raises:
            GuardError: if the run ends here.
        """
        state = self.state
        if state.may_go_back():
            failed = state.updates
            state.go_back()
            log.go_back(state.updates)
            log.event("went back", state.updates, failed=failed, findings=verdict.findings)
            logger.warning("Update %d: back to the last good checkpoint, of update %d", failed, state.updates)
            return True
        if state.guard.broken or self.config.guard.action in ("stop", "rollback"):
            log.event("ended by the guard", state.updates, findings=verdict.findings)
            raise state.stop(verdict.findings)
        return False

    def _round(self) -> dict[str, float]:
        """All updates of one round, in the method's order."""
        metrics: dict[str, torch.Tensor | float] = {}
        order, done = self.method.order, self.state.updates
        counts = {role: order.count(role) for role in order}
        for place, role in enumerate(order):
            number = order[:place].count(role)
            metrics |= self._update(role, done * len(order) + place, done * counts[role] + number)
        if self.ema is not None:
            self.ema.update()
        return mean_over_processes(metrics, self.device)

    def _update(self, role: str, update: int, own_update: int) -> dict[str, torch.Tensor | float]:
        """One optimizer step of one role over its micro-batches."""
        engine = self.networks.engine(role)
        data = self.config.data
        metrics: dict[str, torch.Tensor | float] = {}
        for micro in range(data.accumulation):
            loss = self.method.loss(role, self._micro_batch(update, micro))
            found = loss.backward(engine, last=micro == data.accumulation - 1)
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0.0) + value / data.accumulation
        norm = engine.step(own_update, self.state.updates / self.config.updates)
        if norm is not None:
            metrics[f"{role}/gradient_norm"] = norm
        return metrics

    def _micro_batch(self, update: int, micro: int) -> MicroBatch:
        """This process's share of the update's global batch: positions go to micro-batches first, then processes."""
        data = self.config.data
        width = data.micro_batch * world_size()
        first = micro * width + rank() * data.micro_batch
        positions = list(range(first, first + data.micro_batch))
        indices = self.draws.sample_indices(update, positions, width * data.accumulation, len(self.dataset))
        images = self.dataset.start_image(indices).to(self.device)
        return self.method.micro_batch(
            self.family,
            images,
            self.dataset.latent_shape,
            update,
            positions,
            lambda: self.dataset.latents(indices).to(self.device),
        )


def train(config: TrainConfig, *, resume: bool = False) -> Outcome:
    """Run or resume a training (every process of the launcher calls this), and write its report.

    Raises:
        MagicDistillError: for anything in the configuration, the files or the run's folder that cannot work; if the
            guard ends the run; or if another process has died.
    """
    check_trackers(config)
    trainer = Trainer(config, resume=resume)
    try:
        outcome = trainer.train()
    except (RuntimeError, OSError) as error:
        raise _explained(error, config) from error
    except GuardError:
        _report(config)
        raise
    _report(config)
    return outcome


def _report(config: TrainConfig) -> None:
    if not is_main():
        return
    try:
        logger.info("The report of the run: %s", write_report(config.run))
    except Exception:
        # Whatever is wrong with a picture, the run itself is saved and sound.
        logger.warning("The report of the run could not be written", exc_info=True)


def _explained(error: RuntimeError | OSError, config: TrainConfig) -> Exception:
    """An error of the surroundings as a paragraph for the user; any other one as it is."""
    again = f"The last checkpoint is intact: continue with magicdistill train {config.run / CONFIG_FILE} --resume."
    if is_lost_process(error):
        return RunError(
            f"Another process of this run has died, or has not answered for {config.timeout:g} minutes ({error}). What "
            f"it said last tells the cause. {again}"
        )
    if isinstance(error, OSError):
        return RunError(f"The run's folder cannot be written ({error}). Make room or mend the disk. {again}")
    return error
