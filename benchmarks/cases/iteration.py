"""Compare one weak-to-strong iteration (five fake updates, one generator update) with its bare network calls.

`benchmarks.w2s` defines bare call and exit level. A choice, in the names here, is a variant of one bare call: without a
branch, or with attention's outputs kept.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

import train
from magicdistill_core.families.hunyuan_video import NetworkShape
from train.config.reading import load_config
from train.config.training import TrainConfig
from train.distributed import init_distributed, prepare_environment
from train.methods.draws import Draws

from ..harness import GB, Bench, Timing
from ..models import random_prompt
from ..sizes import Clip, forward_flops

if TYPE_CHECKING:
    from ..w2s import Subject

PRESET = Path(train.__file__).parent / "presets" / "hunyuan_i2v_w2s_4step.yaml"
# For one GPU: the generator is a branch too, so all roles share one frozen base.
ONE_GPU = ("model.mode=lora", "model.activation_checkpointing=true", "zero.stage=2")
_POCKET = ("model.generator_branch.rank=8", "model.fake_branch.rank=8")
_SEED = 0
_POCKET_REPEATS = 7
_POCKET_ROUNDS = 6
_RESTORING = "restoring"
_NO_BRANCH, _ATTENTION_KEPT = "forward without a branch", "backward, attention kept"
# Expected time of the updates of one clip, and of each choice, as a number of bare forwards. A call with backward and
# recomputation takes as long as four.
_CLIP_FORWARDS = 19
CHOICES = {_NO_BRANCH: 2, _ATTENTION_KEPT: 8}


def run(bench: Bench) -> None:
    """Measure single updates at growing clip lengths until memory or time runs out, then choices.

    At pocket size also measure complete rounds with drawn exit levels.
    """
    prepare_environment()
    init_distributed()
    if bench.full:
        growing(bench)
        return
    subjects, repeats = Subjects(bench), _POCKET_REPEATS
    medium, usual = bench.sizes.medium, bench.sizes.usual
    for clip in (medium, usual):
        subjects.case(clip.name, partial(measure_updates, bench, clip=clip, repeats=repeats, warmup=1))
    for choice in CHOICES:
        work = partial(measure_choice, bench, clip=usual, choice=choice, repeats=repeats, warmup=1)
        subjects.case(f"{usual.name}: {choice}", work, trains=False)
    subjects.case("rounds", partial(measure_rounds, bench, clip=medium, repeats=_POCKET_ROUNDS))
    subjects.case(_RESTORING, partial(restoring, bench, clip=medium))


class Subjects:
    """Provides the distillation that cases are measured on, and builds a new one after a training case has failed.

    An error in the middle of a backward leaves ZeRO's internal state incomplete, and every later update of the same
    engines would fail too.

    Args:
        bench: the benchmark's tools.
        warm_up: the clip of one update per role before the first case, because DeepSpeed creates its states at the
            first update. None if the cases warm up themselves.
    """

    def __init__(self, bench: Bench, warm_up: Clip | None = None) -> None:
        self._bench = bench
        self._warm_up = warm_up
        self._subject: Subject | None = None
        self._seconds: float | None = None
        self._cannot = False

    @property
    def seconds_before(self) -> float:
        """Expected seconds of a build before the next case: those of the last build, or 0 if nothing must be built."""
        return self._seconds or 0.0 if self._subject is None else 0.0

    def case(self, name: str, work: "Callable[[Subject], float | None]", *, trains: bool = True) -> float | None:
        """Run one case on a distillation that no failed case has used for training.

        Args:
            name: the name of the case.
            work: measures and records the case.
            trains: whether the case makes updates with the engines.

        Returns:
            The result of `work`; None if the case failed or was not run.
        """
        self._build()
        if self._subject is None:
            self._bench.record(name, error="not run: the distillation could not be built")
            return None
        result = None
        with self._bench.case(name) as case:
            result = work(self._subject)
        if case.failed and trains:
            # The next case frees the memory when it begins.
            self._subject.release()
            self._subject = None
        return result

    def _build(self) -> None:
        """Build a distillation if there is none and no build has failed before."""
        bench, first = self._bench, self._seconds is None
        if self._subject is not None or self._cannot:
            return
        with bench.case("build" if first else "build again, after a failure") as case:
            subject = build(bench, bench.sizes.shape, bench.sizes.text_tokens)
            if first:
                bench.clean()
                bench.record("network, branches and optimizers before the first update", **_peak(bench.peak_bytes()))
            if self._warm_up is not None:
                _warm_up(bench, subject, self._warm_up)
            self._subject = subject
        self._seconds, self._cannot = case.seconds, case.failed


def build(bench: Bench, shape: NetworkShape, text_tokens: int) -> "Subject":
    """Build the distillation that is measured, with the settings of `settings`."""
    from ..w2s import Stopwatch, Subject, random_checkpoint

    generator = bench.generator(_SEED)
    prompt = random_prompt(shape, text_tokens, bench.device, generator)
    teacher = random_checkpoint(shape, bench.device, bench.dtype, generator)
    return Subject(settings(bench), teacher, prompt, bench.device, Stopwatch(bench.synchronize))


def settings(bench: Bench) -> TrainConfig:
    """Return the settings of the 13B preset for one GPU, in the machine's precision; small branches at pocket size."""
    precision = "bf16" if bench.dtype == torch.bfloat16 else "fp32"
    return load_config(PRESET, (*ONE_GPU, *(() if bench.full else _POCKET), f"model.precision={precision}"))


def growing(bench: Bench) -> None:
    """Measure at full size: a restored state, updates at the medium, longest and usual clip, then choices.

    The longest clip comes before the usual one, because whether it fits into memory matters most.
    """
    sizes = bench.sizes
    subjects = Subjects(bench, warm_up=sizes.small)
    forward = 0.0

    def fits(name: str, clip: Clip, forwards: int) -> bool:
        work, known = (forward_flops(sizes.shape, c.tokens, sizes.text_tokens) for c in (clip, sizes.medium))
        return bench.time_for(name, subjects.seconds_before + forwards * forward * work / known)

    subjects.case(_RESTORING, partial(restoring, bench, clip=sizes.small))
    for clip in (sizes.medium, sizes.longest, sizes.usual):
        if fits(clip.name, clip, _CLIP_FORWARDS):
            taken = subjects.case(clip.name, partial(measure_updates, bench, clip=clip, repeats=1, warmup=0))
            forward = forward or taken or 0.0
    for clip in (sizes.longest, sizes.usual):
        for choice, forwards in CHOICES.items():
            name = f"{clip.name}: {choice}"
            if fits(name, clip, forwards):
                work = partial(measure_choice, bench, clip=clip, choice=choice, repeats=1, warmup=0)
                subjects.case(name, work, trains=False)


def _warm_up(bench: Bench, subject: "Subject", clip: Clip) -> None:
    """Make one update of each role, because DeepSpeed creates its states at the first update."""
    from ..w2s import FAKE, GENERATOR, Course, FixedExit

    course = Course(subject, clip, FixedExit(_SEED, 0), bench.generator(_SEED))
    for role in (FAKE, GENERATOR):
        course.update(role)


def measure_updates(bench: Bench, subject: "Subject", clip: Clip, repeats: int, warmup: int) -> float:
    """Measure one fake and one generator update with the first level as exit level, and the bare calls in them.

    The time of an iteration (five fake updates and one generator update at the average exit level) is computed from
    these.

    Returns:
        The seconds of one bare forward.
    """
    from ..w2s import FAKE, GENERATOR, Course, FixedExit, calls

    course = Course(subject, clip, FixedExit(_SEED, 0), bench.generator(_SEED))
    phases: dict[str, list[dict[str, float]]] = {FAKE: [], GENERATOR: []}

    def timed(role: str) -> Callable[[], None]:
        def update() -> None:
            subject.watch.seconds = {}
            course.update(role)
            phases[role].append(subject.watch.seconds)

        return update

    with course.held():
        if not warmup:
            # The first call at a clip length is slow: kernels are chosen and memory is allocated. Do not time it.
            course.bare_backward()
        timings = bench.compare(
            {
                FAKE: timed(FAKE),
                GENERATOR: timed(GENERATOR),
                "forward": course.bare_forward,
                "backward": course.bare_backward,
            },
            repeats,
            warmup,
        )
    forward, backward = timings["forward"], timings["backward"]
    common = {"frames": clip.frames, "tokens": clip.tokens}
    bench.record(f"{clip.name}: bare forward", **common, **forward.row())
    bench.record(f"{clip.name}: bare forward and backward, checkpointed", **common, **backward.row())
    for role in (FAKE, GENERATOR):
        without, with_gradient = calls(role, 0)
        bare = without * forward.median + with_gradient * backward.median
        last = phases[role][-repeats:]
        parts = {f"{name}_seconds": median(taken[name] for taken in last) for name in last[0]}
        bench.record(
            f"{clip.name}: {role} update, exit at the first node",
            **common,
            **timings[role].row(),
            **parts,
            bare_seconds=bare,
            ratio=timings[role].median / bare,
        )
    fake_updates, steps = course.method.order.count(FAKE), subject.config.schedule.steps
    total, bare = iteration_seconds(timings[FAKE], timings[GENERATOR], forward, backward, fake_updates, steps)
    bench.record(
        f"{clip.name}: iteration, computed from one update of each",
        **common,
        seconds=total,
        repeats=repeats,
        bare_seconds=bare,
        ratio=total / bare,
        **_peak(max(timing.peak_bytes for timing in timings.values())),
        note=f"{fake_updates} fake updates and 1 generator update; {(steps - 1) / 2:g} forwards are added to each "
        f"rollout, for the average exit level; one process, so no communication",
    )
    return forward.median


def restoring(bench: Bench, subject: "Subject", clip: Clip) -> None:
    """Call `measure_restoring`, which is imported late because it needs DeepSpeed."""
    from ..restoring import measure_restoring

    measure_restoring(bench, subject, clip)


def _peak(peak_bytes: int) -> dict[str, float]:
    """Return the column of a memory peak; none if the device does not report peaks."""
    return {"peak_gb": peak_bytes / GB} if peak_bytes else {}


def measure_choice(bench: Bench, subject: "Subject", clip: Clip, choice: str, repeats: int, warmup: int) -> None:
    """Compare a variant of one bare call with the usual bare call, which is the one that training makes.

    The row's `ratio` is the time of the variant divided by the time of the usual call.

    Args:
        bench: measures and records.
        subject: the networks and engines of a training.
        clip: the size of the training clips.
        choice: the variant. `forward without a branch` shows what a branch costs. `backward, attention kept` shows what
            keeping attention's outputs instead of recomputing them saves.
        repeats: timed calls of each variant.
        warmup: calls of each variant before the timed ones.
    """
    from ..w2s import Course, FixedExit

    course = Course(subject, clip, FixedExit(_SEED, 0), bench.generator(_SEED))
    chosen, usual = {
        _NO_BRANCH: (course.base_forward, course.bare_forward),
        _ATTENTION_KEPT: (course.backward_with_attention_kept, course.bare_backward),
    }[choice]
    with course.held():
        timings = bench.compare({choice: chosen, "usual": usual}, repeats, warmup)
    ratio = timings[choice].median / timings["usual"].median
    row = timings[choice].row() | {"bare_seconds": timings["usual"].median, "ratio": ratio}
    if timings["usual"].peak_bytes:
        row["usual_peak_gb"] = timings["usual"].peak_bytes / GB
    bench.record(f"{clip.name}: {choice}", frames=clip.frames, tokens=clip.tokens, **row)


def iteration_seconds(
    fake: Timing, generator: Timing, forward: Timing, backward: Timing, fake_updates: int, steps: int
) -> tuple[float, float]:
    """Compute the time of one iteration at the average exit level, and the time of the bare calls in it.

    Args:
        fake: one update of the fake branch with exit level 0.
        generator: one update of the generator with exit level 0.
        forward: the bare call without gradient.
        backward: the bare call with gradient, and its backward.
        fake_updates: fake updates per generator update.
        steps: number of levels in the schedule; each is equally often the exit level.

    Returns:
        The seconds of the iteration, and of its bare calls.
    """
    longer = (steps - 1) / 2 * forward.median
    total = fake_updates * (fake.median + longer) + generator.median + longer
    bare = fake_updates * (forward.median + longer + backward.median) + 2 * forward.median + longer + backward.median
    return total, bare


def measure_rounds(bench: Bench, subject: "Subject", clip: Clip, repeats: int) -> None:
    """Measure complete rounds with drawn exit levels, and the bare calls of the same rounds."""
    from ..w2s import Course

    course = Course(subject, clip, Draws(_SEED), bench.generator(_SEED))
    phases: list[dict[str, float]] = []

    def one() -> None:
        subject.watch.seconds = {}
        course.round()
        phases.append(subject.watch.seconds)

    with course.held():
        timings = bench.compare({"round": one, "bare": course.bare_round}, repeats)
    bare, last = timings["bare"], phases[-repeats:]
    bench.record(
        f"{clip.name}: rounds of {len(course.method.order)} updates, drawn exits",
        frames=clip.frames,
        tokens=clip.tokens,
        **timings["round"].row(),
        **{f"{name}_seconds": median(taken[name] for taken in last) for name in last[0]},
        bare_seconds=bare.median,
        # Each round is compared with its own bare calls, because exit levels differ between rounds.
        ratio=median(total / calls for total, calls in zip(timings["round"].seconds, bare.seconds, strict=True)),
        note="one process: the only communication is the average of the metrics",
    )
