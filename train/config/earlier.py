"""Configurations that earlier versions have written into their runs.

The `config.yaml` of a run contains every setting of the version that started it. The run must be readable and
resumable with a newer version. So settings that no longer exist are removed from it; in a file of a user they are an
error like any other unknown name. And a setting that did not exist gets the value that means what the run did.
"""

from typing import Any

# By dotted name: what does this today.
RETIRED = {
    "checkpoint.measure": "validation.every (the energy score of the validation selects the best checkpoint)",
    "guard.gradient_ceiling": "guard.relative_distance_ceiling",
    "guard.distance_ceiling": "guard.relative_distance_ceiling",
}
_HELD_OUT = "held_out"


def of_this_version(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a run's configuration in the form of this version, and a note for each change.

    Args:
        tree: the sections of the configuration as plain data; it is not changed.
    """
    kept, notes = dict(tree), []
    for name, instead in RETIRED.items():
        section, _, field = name.partition(".")
        if isinstance(kept.get(section), dict) and field in kept[section]:
            notes.append(f"{name}={kept[section][field]} no longer exists; see {instead}")
            kept[section] = {key: value for key, value in kept[section].items() if key != field}
    data = kept.get("data")
    if isinstance(data, dict) and _HELD_OUT not in data:
        # The order of the samples depends on it.
        notes.append(f"it trains on all samples of its dataset, so data.{_HELD_OUT} is 0")
        kept["data"] = data | {_HELD_OUT: 0}
    return kept, notes
