"""What the measurements of the training signal mean, in words; for the log and the report.

The *training signal* of distribution matching is the difference `r - f` of the real and the fake score.
"""

from collections.abc import Mapping
from math import sqrt

from ..config.methods import FAKE, GENERATOR
from ..config.training import TrainConfig

AGREEMENT = "signal/agreement"
# The cosine of a signal with itself plus independent noise of the same size.
AGREEMENT_FLOOR = 1 / sqrt(2)
# Above it Adam's epsilon decides the steps of most weights.
BELOW_EPS_CEILING = 0.5


def below_eps(role: str) -> str:
    """Return the name of the metric for the share of a role's weights with gradients below Adam's epsilon."""
    return f"signal/{role}_below_eps"


def signal_findings(metrics: Mapping[str, float], config: TrainConfig) -> tuple[str, ...]:
    """Return one message per measurement that shows a signal below its noise.

    Args:
        metrics: values by name; those that were not measured are left out.
        config: the training's configuration.
    """
    findings = []
    agreement = metrics.get(AGREEMENT)
    if agreement is not None and agreement < AGREEMENT_FLOOR:
        findings.append(
            f"the training signal is below the rounding noise of bf16: {AGREEMENT} is {agreement:.2f}, and at "
            f"{AGREEMENT_FLOOR:.2f} there is as much noise as signal; raise method.fake_warmup or fake_optimizer.lr"
        )
    optimizers = {GENERATOR: config.generator_optimizer, FAKE: config.fake_optimizer}
    for role, optimizer in optimizers.items():
        share = metrics.get(below_eps(role))
        if share is not None and share > BELOW_EPS_CEILING and optimizer is not None:
            findings.append(
                f"Adam's epsilon suppresses most updates: the gradients of {100 * share:.0f} % of the weights of the "
                f"role {role} are below {optimizer.eps:g}; lower {role}_optimizer.eps"
            )
    return tuple(findings)
