"""The section of a run's report about its validations."""

import math
from pathlib import Path

from magicdistill_core.errors import CheckpointError

from ..config.training import ValidationConfig
from ..run_folder import VALIDATION_FILE, checkpoint_folder, read_manifest
from .log import read_lines
from .plots import plot_validation

_PLOT = "validation.png"


def validation_section(run: Path, settings: ValidationConfig, folder: Path) -> str:
    """Return the text of the section, and write its plot.

    Args:
        run: the run's folder.
        settings: the run's section `validation`.
        folder: the folder of the report.
    """
    rows = read_lines(run / VALIDATION_FILE, "step", "since", "validation/energy", "validation/difference")
    if not rows:
        return "There are no validations: `validation.every` is 0, or the run was too short."
    # Earlier ones were of other clips, before the run was resumed with other settings.
    rows = [row for row in rows if row["since"] == rows[-1]["since"]]
    best = _best_update(run)
    plot_validation(rows, best, folder / _PLOT)
    finite = [row for row in rows if math.isfinite(row["validation/difference"])]
    lowest = min(finite or rows, key=lambda row: float(row["validation/difference"]))
    error = lowest.get("validation/standard_error")
    interval = "" if error is None else f" ± {1.96 * error:.3g} (95 %)"
    parts = [
        f"The energy score compares the samples with what really followed their start images. It is a mean over at "
        f"most {settings.samples} clips with {settings.seeds} samples each; lower is better. The plot shows its "
        f"difference from the score at update {rows[0]['since']} ({rows[0]['validation/energy']:.4g}), clip by clip, "
        f"with 95 % intervals.",
        f"The lowest score is that of update {lowest['step']}: {lowest['validation/difference']:+.3g}{interval}.",
    ]
    if best is not None and best != lowest["step"]:
        parts.append(f"The best checkpoint, the healthy one with the lowest score, is that of update {best}.")
    return "\n\n".join([*parts, f"![energy score]({_PLOT})"])


def _best_update(run: Path) -> int | None:
    try:
        return read_manifest(checkpoint_folder(run, best=True)).update
    except CheckpointError:
        return None
