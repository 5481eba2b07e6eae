"""The motion of a pocket portrait: what its first frame shows, and a future that continues it.

The two parts are drawn independently: first the `Beginning`, which is all that the first frame shows of the motion,
then one of its possible futures. Several futures of one beginning are therefore exact draws from the distribution of
clips with that first frame. A `Direction` says in words what happens in a future. Left and right are those of the
picture. Units are in the docstring of `portrait`; times are in seconds.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Turn = Literal["left", "still", "right"]
TURNS: tuple[Turn, ...] = ("left", "still", "right")


@dataclass(frozen=True)
class Direction:
    """What a person does within the 0.7 seconds of a clip.

    Attributes:
        turn: the side of the picture to which the head turns.
        speaks: whether the mouth speaks. A silent mouth that was open closes.
        blinks: whether the eyes blink.
    """

    turn: Turn
    speaks: bool
    blinks: bool


@dataclass(frozen=True)
class Beginning:
    """The state of the head in the first frame. Angles are in radians, the others in head units."""

    roll: float
    yaw: float
    pitch: float
    gaze_x: float
    gaze_y: float
    brow: float
    mouth: float
    rounding: float


@dataclass(frozen=True)
class Wave:
    """A smooth pseudo-random change that is 0 at time 0: a sum of two sine waves.

    Attributes:
        amplitude: about half of the largest distance between two values.
        hertz: frequency of the first wave.
        phase: phase of the first wave in periods, from 0 to 1.
        second_ratio: frequency of the second wave divided by that of the first.
        second_phase: phase of the second wave in periods.
    """

    amplitude: float
    hertz: float
    phase: float
    second_ratio: float
    second_phase: float

    def at(self, t: np.ndarray) -> np.ndarray:
        """Return the change at times `t`, shaped as `t`."""
        return self.amplitude * (self._sum(t) - self._sum(np.zeros(())))

    def _sum(self, t: np.ndarray) -> np.ndarray:
        first = np.sin(2 * np.pi * (self.hertz * t + self.phase))
        second = np.sin(2 * np.pi * (self.hertz * self.second_ratio * t + self.second_phase))
        summed: np.ndarray = 0.72 * first + 0.28 * second
        return summed


@dataclass(frozen=True)
class Future:
    """One continuation of a beginning.

    Attributes:
        shift_x, shift_y, roll, yaw, pitch, gaze_x, gaze_y, brow, rounding: the small changes that never stop.
        turn: the change of yaw by the turn of the head; negative turns to the left of the picture.
        turn_begin, turn_length: time of the turn's first motion, and its duration.
        speech: largest opening of the mouth while it speaks; 0 is silence.
        syllable_hertz: openings of the mouth per second.
        opens_first: whether the mouth continues to open at time 0, or to close.
        blink_time: middle of the first blink.
        blink_length: duration of a blink.
        blink_period: time from one blink to the next.
    """

    shift_x: Wave
    shift_y: Wave
    roll: Wave
    yaw: Wave
    pitch: Wave
    gaze_x: Wave
    gaze_y: Wave
    brow: Wave
    rounding: Wave
    turn: float
    turn_begin: float
    turn_length: float
    speech: float
    syllable_hertz: float
    opens_first: bool
    blink_time: float
    blink_length: float
    blink_period: float


def sample_beginning(generator: np.random.Generator) -> Beginning:
    """Draw the state of the first frame. The eyes are open."""
    rng = generator
    return Beginning(
        roll=_uniform(rng, -0.05, 0.05),
        yaw=_uniform(rng, -0.1, 0.1),
        pitch=_uniform(rng, -0.05, 0.05),
        gaze_x=_uniform(rng, -0.05, 0.05),
        gaze_y=_uniform(rng, -0.012, 0.012),
        brow=_uniform(rng, -0.02, 0.03),
        mouth=_uniform(rng, 0.02, 0.16) if rng.random() < 0.5 else 0.0,
        rounding=_uniform(rng, -0.06, 0.12),
    )


def sample_direction(generator: np.random.Generator) -> Direction:
    """Draw what happens in a clip: each turn with probability 1/3, speech with 0.6, a blink with 0.5."""
    turn = TURNS[int(generator.integers(len(TURNS)))]
    return Direction(turn, bool(generator.random() < 0.6), bool(generator.random() < 0.5))


def sample_future(generator: np.random.Generator, direction: Direction) -> Future:
    """Draw a continuation in which the person does what `direction` says."""
    rng = generator
    turn = _uniform(rng, 0.1, 0.16)
    speech = _uniform(rng, 0.12, 0.22)
    return Future(
        shift_x=_wave(rng, (0.003, 0.01), (0.25, 0.6)),
        shift_y=_wave(rng, (0.002, 0.006), (0.3, 0.7)),
        roll=_wave(rng, (0.005, 0.015), (0.25, 0.6)),
        yaw=_wave(rng, (0.005, 0.015), (0.25, 0.6)),
        pitch=_wave(rng, (0.005, 0.015), (0.3, 0.7)),
        gaze_x=_wave(rng, (0.005, 0.02), (0.2, 0.5)),
        gaze_y=_wave(rng, (0.0, 0.005), (0.2, 0.5)),
        brow=_wave(rng, (0.003, 0.012), (0.3, 0.7)),
        rounding=_wave(rng, (0.02, 0.06), (0.5, 1.1)),
        turn={"left": -turn, "still": 0.0, "right": turn}[direction.turn],
        turn_begin=_uniform(rng, 0.0, 0.12),
        turn_length=_uniform(rng, 0.38, 0.52),
        speech=speech if direction.speaks else 0.0,
        syllable_hertz=_uniform(rng, 1.5, 2.4),
        opens_first=bool(rng.random() < 0.5),
        blink_time=_uniform(rng, 0.24, 0.48) if direction.blinks else _uniform(rng, 1.0, 2.2),
        blink_length=_uniform(rng, 0.34, 0.46),
        # Longer than the latest first blink, so that none comes before it.
        blink_period=_uniform(rng, 2.6, 3.6),
    )


def yaw(beginning: Beginning, future: Future, seconds: np.ndarray) -> np.ndarray:
    """Return the yaw at the times of the frames, shaped as `seconds`."""
    progress = _ease((seconds - future.turn_begin) / future.turn_length)
    return beginning.yaw + future.turn * progress + future.yaw.at(seconds)


def mouth_opening(beginning: Beginning, future: Future, seconds: np.ndarray) -> np.ndarray:
    """Return the opening of the mouth in head units: syllables, or an open mouth that closes within 0.2 seconds."""
    if future.speech == 0:
        return beginning.mouth * (1 - _ease(seconds / 0.2))
    # The first syllable continues at the opening of the first frame, which may be the widest of all.
    widest = max(future.speech, 1.05 * beginning.mouth)
    start = np.arccos(1 - 2 * (beginning.mouth / widest) ** (1 / 1.2))
    phase = start if future.opens_first else -start
    syllable = 0.5 - 0.5 * np.cos(2 * np.pi * future.syllable_hertz * seconds + phase)
    return widest * np.clip(syllable, 0, 1) ** 1.2


def eyelid_closure(future: Future, seconds: np.ndarray) -> np.ndarray:
    """Return the closure of the eyelids: 0 is open, 1 is closed."""
    since = np.mod(seconds - future.blink_time + future.blink_length / 2, future.blink_period)
    bump = np.sin(np.pi * np.clip(since / future.blink_length, 0, 1))
    return np.clip(1.25 * bump**1.5, 0, 1)


def _ease(progress: np.ndarray) -> np.ndarray:
    """Map 0..1 to 0..1 with a smooth start and end (smoothstep)."""
    clipped = np.clip(progress, 0, 1)
    return clipped * clipped * (3 - 2 * clipped)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _wave(rng: np.random.Generator, amplitude: tuple[float, float], hertz: tuple[float, float]) -> Wave:
    return Wave(
        amplitude=_uniform(rng, *amplitude),
        hertz=_uniform(rng, *hertz),
        phase=float(rng.random()),
        second_ratio=_uniform(rng, 1.6, 2.3),
        second_phase=float(rng.random()),
    )
