"""The claims that the tables test: the order of the methods in the paper, and what this project claims itself."""

from dataclasses import dataclass

from magicdistill_core.metrics.bootstrap import Interval


@dataclass(frozen=True)
class Claim:
    """One claim about two rows.

    Attributes:
        text: the claim in words.
        source: who makes it.
        better: the row that is better.
        worse: the row that it is compared with.
        equal_is_enough: whether the claim also holds if no difference can be seen.
    """

    text: str
    source: str
    better: str
    worse: str
    equal_is_enough: bool = False


_OURS, _PAPER = "this project", "MagicDistillation"
CLAIMS = (
    Claim("W2S with 4 steps is not worse than the teacher with 28", _OURS, "w2s-4", "euler-28", equal_is_enough=True),
    Claim("W2S with 4 steps is better than the teacher with 4", _OURS, "w2s-4", "euler-4"),
    Claim(
        "A LoRA with 4 steps is not worse than W2S of all weights", _OURS, "w2s_lora-4", "w2s-4", equal_is_enough=True
    ),
    Claim("One step is better than the teacher with 4", _OURS, "one_step-1", "euler-4"),
    Claim("W2S with 4 steps is better than the teacher with 28", _PAPER, "w2s-4", "euler-28"),
    Claim("W2S is better than DMD2, 4 steps", _PAPER, "w2s-4", "dmd2-4"),
    Claim("W2S is better than DMD, 4 steps", _PAPER, "w2s-4", "dmd-4"),
    Claim("W2S is better than LCM, 4 steps", _PAPER, "w2s-4", "lcm-4"),
    Claim("DMD2 is better than LCM, 4 steps", _PAPER, "dmd2-4", "lcm-4"),
    Claim("LCM is better than the teacher, 4 steps", _PAPER, "lcm-4", "euler-4"),
    Claim("W2S is better than DMD2, 1 step", _PAPER, "one_step-1", "dmd2-1"),
    Claim("DMD2 is better than LCM, 1 step", _PAPER, "dmd2-1", "lcm-1"),
    Claim("LCM is better than the teacher, 1 step", _PAPER, "lcm-1", "euler-1"),
)


def verdict(claim: Claim, difference: Interval, *, higher: bool) -> str:
    """Return whether the interval of a difference supports a claim.

    Args:
        claim: the claim.
        difference: the better row minus the other.
        higher: whether a higher value of the measure is better.
    """
    low, high = (difference.low, difference.high) if higher else (-difference.high, -difference.low)
    if low > 0 or (claim.equal_is_enough and high >= 0):
        return "holds"
    return "does not hold" if high < 0 else "not decided"
