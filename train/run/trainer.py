"""The training loop: rounds of updates, logging, validation samples and checkpoints.

An *update* is one optimizer step of one *role*: the generator, the fake branch or the discriminator. A *round* is the
sequence of updates that the method defines; it contains exactly one generator update. A method may begin with rounds
of the fake branch alone, its *fake warm-up*.
"""

import logging
import time
from dataclasses import dataclass

import torch

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.families.base import StartImage
from magicdistill_core.recipe import Recipe

from ..config.methods import FAKE
from ..config.training import TrainConfig
from ..data.dataset import LatentDataset
from ..data.held_out import held_out_samples
from ..data.read_ahead import ReadAhead
from ..distributed import (
    beginning_together,
    bound_waiting,
    data_rank,
    data_size,
    first_error,
    init_distributed,
    is_main,
    mean_over_processes,
    world_size,
)
from ..engines.ema import GeneratorEma
from ..engines.networks import build_networks
from ..engines.teacher import Teacher, load_teacher
from ..memory.training import largest_shapes, log_memory, memory_of
from ..methods import MicroBatch, build_method
from ..methods.batch_prompts import batch_prompts
from ..methods.draws import Draws
from ..run_folder import VALIDATION
from ..signals import StopRequest
from ..watch.guard import Verdict
from ..watch.log import RunLog
from ..watch.report import write_report
from ..watch.signal import SignalMeter
from ..watch.validation import Validation
from ..watch.weights_and_biases import check_wandb, wandb_log
from .checkpoint_folders import make_room
from .disk_space import check_room, is_full, state_bytes
from .failures import LostProcessError, recorded_failure
from .machine import gpu_bytes, machine_facts
from .mixture import Member, Mixture, member_samples
from .preflight import check_inputs, record_inputs
from .state import RunState
from .trained_files import TrainedFiles
from .training_folder import training_folder
from .validating import validate_if_due

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        updates: number of generator updates made.
        stopped_by: the name of the signal that stopped the run; None if it finished.
    """

    updates: int
    stopped_by: str | None


class Trainer:
    """One run: its networks and engines, its data, and its state."""

    def __init__(self, config: TrainConfig, device: torch.device, *, resume: bool) -> None:
        """Check the inputs, load the networks and, if asked to, the newest checkpoint; a collective call.

        Args:
            config: the training's configuration.
            device: the device of this process.
            resume: whether to continue the run in `config.run` instead of starting a new one.

        Raises:
            MagicDistillError: if the configuration, the files or the run's folder are unusable.
        """
        self.config = config
        self.device = device
        self.inputs = check_inputs(config, resume=resume)
        self.dataset = self.inputs.dataset
        with beginning_together():
            loaded = load_teacher(config)
            teacher = loaded.checkpoint
            self.family = teacher.family()
            self.prompt, self.prompt_template = loaded.prompt, loaded.prompt_template
            self.shape = teacher.shape
            self.dataset.check_family(self.family)
            self.ahead = ReadAhead(device)
            self.draws = Draws(config.seed, self.ahead)
            self.prompts = batch_prompts(config, self.dataset, self.family, self.prompt, self.draws)
            if self.prompts is not None and self.dataset.texts is not None:
                self.prompt_template = self.dataset.texts.index.template
            self.recipe = self._recipe()
            # Checked before the networks are loaded. Only the main process loads the VAE and computes the memory.
            held_out = held_out_samples(self.dataset.index, config.data.held_out)
            self.mixture = self._mixture(held_out)
            self.validation = Validation(
                config.validation,
                config.schedule,
                self.dataset,
                held_out,
                self.family,
                config.run / VALIDATION,
                self.device,
                config.data.micro_batch,
                self.prompts,
                config.context_parallel,
            )
            if is_main():
                self._log_memory(loaded)
        self.networks = build_networks(config, teacher, self.prompt, self.device, loaded.negative)
        bound_waiting(config.timeout)
        self.method = build_method(config, self.networks, self.draws, self.device)
        self.signal = SignalMeter(config, self.networks, self.method)
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
            self.dataset.texts.vocabulary if self.prompts is not None and self.dataset.texts is not None else {},
            self.ema,
        )
        self.state = RunState(config, self.networks.engines, self.draws, self.files.write, self.validation.key)
        if self.ema is not None:
            self.state.saved_states["generator_ema"] = self.ema
        if resume:
            self.state.resume()
        self.checkpoint_bytes = state_bytes(self.state.saved_states) + self.files.bytes()
        if self.state.updates < config.updates:
            check_room(config.run, self.checkpoint_bytes, config.checkpoint.keep)
        # Written last, so that a refused resume does not change the run's record.
        record_inputs(config, self.inputs)

    def _recipe(self) -> Recipe:
        schedule, dataset = self.config.schedule, self.dataset
        fields = {
            "kind": "generator",
            "family": self.family.architecture.name,
            "i2v_mode": self.family.i2v_mode,
            "steps": schedule.steps,
            "shift": schedule.shift,
            "sampler": schedule.sampler,
            "image_in_noise": schedule.image_in_noise,
            "dropped_frames": schedule.dropped_frames,
            "prompt_template": self.prompt_template,
            "width": dataset.width,
            "height": dataset.height,
            "frames": dataset.frames,
            "fps": dataset.fps,
            "teacher_hash": self.inputs.teacher_hash,
            "teacher_loras": self.inputs.teacher_loras,
        }
        if self.shape.guidance_embed:
            fields["embedded_guidance"] = self.config.model.embedded_guidance
        return Recipe.model_validate(fields | self.config.method.recipe_fields())

    def _mixture(self, held_out: list[int]) -> Mixture:
        """Return the datasets with the samples that are trained on. A held-out video is held out of all of them."""
        first = Member(self.dataset, sorted(set(range(len(self.dataset))) - set(held_out)))
        videos = {self.dataset.index.place(number).key.rpartition("#")[0] for number in held_out}
        others = []
        for dataset in self.inputs.mixed:
            dataset.check_family(self.family)
            others.append(Member(dataset, member_samples(dataset, videos)))
        return Mixture([first, *others], self.config.data.weights, self.draws)

    def _log_memory(self, teacher: Teacher) -> None:
        """Compute and log the memory that the run needs on each GPU; does nothing on a CPU."""
        capacity = gpu_bytes(self.device)
        if capacity is None:
            return
        try:
            texts = self.dataset.texts
            tokens = None if texts is None else texts.longest
            shapes = largest_shapes([self.dataset, *self.inputs.mixed])
            memory = memory_of(self.config, teacher, shapes, world_size(), tokens)
        except MagicDistillError:
            raise
        except Exception:
            # A failed estimate must not stop a valid run.
            logger.warning("The GPU memory of this run could not be computed; the run continues", exc_info=True)
        else:
            log_memory(memory, capacity)

    def train(self) -> Outcome:
        """Train up to the configured number of updates or until a signal stops the run; return how it ended.

        Raises:
            GuardError: if the guard ends the run.
            CheckpointError: if a checkpoint could not be written.
        """
        config, state = self.config, self.state
        # Signals stay caught until a failure is recorded: `torchrun` sends one as soon as another process has failed.
        saves = StopRequest("The run saves after this round and stops")
        with saves as stop, self._log() as log, recorded_failure(config, lambda: state.position):
            facts = machine_facts() | {"checkpoint_bytes": self.checkpoint_bytes}
            if state.changed:
                facts["changed"] = state.changed
            log.event("resumed" if state.position + state.warmup else "started", state.position, **facts)
            self._validate(log)
            while state.updates < config.updates:
                began = time.monotonic()
                metrics = self._round()
                verdict, new = state.advance(metrics)
                signal = self._measure_signal() if self.signal.due(state.position) and not verdict.act else {}
                log.log(state.position, metrics | signal | state.guard.ratios(), time.monotonic() - began)
                for finding in (*new, *self.signal.findings(signal)):
                    log.event("warning", state.position, finding=finding)
                    logger.warning("Update %d: %s", state.position, finding)
                if verdict.act and self._respond(verdict, log):
                    continue
                stopped_by = first_error(stop.name)
                if state.due() or stopped_by:
                    state.save()
                    log.event("saved", state.position)
                if stopped_by:
                    log.event("stopped", state.position, by=stopped_by)
                    return Outcome(state.updates, stopped_by)
                # After the save: a process that is killed during the validation loses no update.
                self._validate(log)
            log.event("finished", state.updates)
        return Outcome(state.updates, None)

    def _validate(self, log: RunLog) -> None:
        """Validate the generator if this is due, and respond to the guard's verdict; a collective call."""
        verdict = validate_if_due(self.validation, self.networks, self.files, self.state, log)
        if verdict.act:
            self._respond(verdict, log)

    def _log(self) -> RunLog:
        config = self.config
        return RunLog(
            config.run,
            config.method.name,
            config.updates,
            self.state.position,
            self.method.headline,
            wandb_log(config),
            lambda error: is_full(error) and bool(make_room(config.run)),
        )

    def _respond(self, verdict: Verdict, log: RunLog) -> bool:
        """Roll back, stop or continue, as configured, when the guard reports a collapse.

        Returns:
            Whether the run rolled back.

        Raises:
            GuardError: if the guard ends the run.
        """
        state = self.state
        if state.may_go_back():
            failed = state.position
            state.go_back()
            log.go_back(state.position)
            log.event("went back", state.position, failed=failed, findings=verdict.findings)
            logger.warning("Update %d: rolled back to the last good checkpoint, of update %d", failed, state.position)
            return True
        if state.guard.broken or self.config.guard.action in ("stop", "rollback"):
            log.event("ended by the guard", state.position, findings=verdict.findings)
            raise state.stop(verdict.findings)
        return False

    def _round(self) -> dict[str, float]:
        """Make all updates of one round in the method's order; return the metrics averaged over the processes.

        Updates of the fake warm-up have negative numbers. So the draws of all later rounds are the same with and
        without it.
        """
        metrics: dict[str, torch.Tensor | float] = {}
        state = self.state
        order = self.method.warmup_order if state.warming else self.method.order
        for place, role in enumerate(order):
            rounds = state.position + (state.warmup if role == FAKE else 0)
            own_update = rounds * order.count(role) + order[:place].count(role)
            metrics |= self._update(role, state.position * len(order) + place, own_update)
        if self.ema is not None and not state.warming:
            self.ema.update()
        return mean_over_processes(metrics, self.device)

    def _measure_signal(self) -> dict[str, float]:
        """Measure the training signal on this process's first micro-batch of the last round; a collective call."""
        order = self.method.order
        batch = self._micro_batch((self.state.position - 1) * len(order), 0)
        return self.signal.measure(batch, self.device)

    def _update(self, role: str, update: int, own_update: int) -> dict[str, torch.Tensor | float]:
        """Make one update of one role over its micro-batches.

        Args:
            role: the role to train.
            update: number of the update, counted over all roles; negative in the fake warm-up.
            own_update: number of the update, counted for this role.
        """
        engine = self.networks.engine(role)
        data = self.config.data
        metrics: dict[str, torch.Tensor | float] = {}
        for micro in range(data.accumulation):
            loss = self.method.loss(role, self._micro_batch(update, micro))
            micro_metrics = loss.backward(engine, last=micro == data.accumulation - 1)
            for name, value in micro_metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value / data.accumulation
        norm = engine.step(own_update, self.state.updates / self.config.updates)
        if norm is not None:
            metrics[f"{role}/gradient_norm"] = norm
        return metrics

    def _micro_batch(self, update: int, micro: int) -> MicroBatch:
        """Read this process's part of a micro-batch.

        The positions of the global batch are split into micro-batches first, and each micro-batch among the processes.
        Those that share their samples (`context_parallel`) have the same part, and so the same draws.
        """
        data, context = self.config.data, self.config.context_parallel
        width = data.micro_batch * data_size(context)
        first = micro * width + data_rank(context) * data.micro_batch
        positions = list(range(first, first + data.micro_batch))

        def chosen(number: int) -> tuple[LatentDataset, list[int]]:
            (dataset, samples), turn = self.mixture.of(number)
            places = self.draws.sample_indices(turn, positions, width * data.accumulation, len(samples))
            return dataset, [samples[place] for place in places]

        def images_of(number: int) -> StartImage:
            dataset, indices = chosen(number)
            return dataset.start_image(indices)

        def latents_of(number: int) -> torch.Tensor:
            dataset, indices = chosen(number)
            return dataset.latents(indices)

        dataset, indices = chosen(update)
        images = self.ahead.get(("start images", micro), update, images_of).to(self.device)
        prompts = negatives = None
        if self.prompts is not None:
            prompts = self.prompts.drawn(indices, update, positions).to(self.device)
            negatives = self.prompts.negatives(indices)
        return self.method.micro_batch(
            self.family,
            images,
            dataset.latent_shape,
            update,
            positions,
            lambda: self.ahead.get(("latents", micro), update, latents_of).to(self.device),
            prompts,
            None if negatives is None else negatives.to(self.device),
        )


def train(config: TrainConfig, *, resume: bool = False) -> Outcome:
    """Run or resume a training and write its report. Every process of the launcher calls this.

    No report is written if another process has died.

    Args:
        config: the training's configuration.
        resume: whether to continue the run in `config.run` instead of starting a new one.

    Returns:
        The number of updates made, and the signal that stopped the run.

    Raises:
        MagicDistillError: if the configuration, the files or the run's folder are unusable, another training holds the
            folder, the guard ends the run, or another process has died.
    """
    device = init_distributed(config.timeout)
    with training_folder(config.run, "magicdistill train"):
        with beginning_together():
            if is_main():
                check_wandb(config)
        return _train(config, device, resume=resume)


def _train(config: TrainConfig, device: torch.device, *, resume: bool) -> Outcome:
    with recorded_failure(config):
        trainer = Trainer(config, device, resume=resume)
    try:
        outcome = trainer.train()
    except LostProcessError:
        # The launcher would end this process before a report is written and the error is printed.
        raise
    except BaseException:
        _write_report(config)
        raise
    _write_report(config)
    return outcome


def _write_report(config: TrainConfig) -> None:
    if not is_main():
        return
    try:
        logger.info("The report of the run: %s", write_report(config.run))
    except Exception as error:
        # The run itself is saved; an error in its report must not make it fail.
        logger.warning("The report of the run could not be written: %s", error)
