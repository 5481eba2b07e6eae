"""When a run validates its generator, and what becomes of the result."""

import logging

from ..engines.networks import Networks
from ..watch.guard import Verdict
from ..watch.log import RunLog
from ..watch.validation import Validation
from .state import RunState
from .trained_files import TrainedFiles

logger = logging.getLogger(__name__)


def validate_if_due(
    validation: Validation, networks: Networks, files: TrainedFiles, state: RunState, log: RunLog
) -> Verdict:
    """Validate the generator if this is due after the updates that were made; a collective call.

    The first validation is that of the run's start, with which all later ones are compared. A resumed run also makes a
    validation that was due when its process was killed.

    Args:
        validation: the validation of the run.
        networks: the networks of the training.
        files: the trained weights; the validated weights are those that are exported.
        state: the state of the run, which stores the result.
        log: the log of the run.

    Returns:
        The verdict of the guard; empty if no validation was due.
    """
    if not validation.due(state.updates, state.config.updates, state.energies):
        return Verdict()
    with files.exported_weights():
        energies, latents = validation.run(networks)
    result = state.energies.observe(state.updates, energies)
    verdict = state.judge_samples(result)
    # Logged before it is stored: a process that is killed in between makes this validation again.
    log.validation(state.updates, result)
    state.store_validation(result)
    for finding in verdict.findings:
        log.event("warning", state.updates, finding=finding)
        logger.warning("Update %d: %s", state.updates, finding)
    problem = validation.show(latents, state.updates)
    if problem is not None:
        log.event("warning", state.updates, finding=problem)
    return verdict
