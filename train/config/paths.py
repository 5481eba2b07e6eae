"""Paths as users write them: `~` is the home folder, and a variable that no shell has replaced is refused."""

import os
import re
from pathlib import Path

from magicdistill_core.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")


def at_home(path: str) -> str:
    """Replace a leading `~` or `~name` by the home folder, as a shell does; other paths are unchanged.

    A shell leaves `~` as it is inside quotes and after an equals sign, as in `--out=~/x`.

    Args:
        path: the path as written.

    Raises:
        ConfigError: if that home folder is unknown, and no such file or folder exists. It would otherwise be created
            under the name `~`.
    """
    expanded = os.path.expanduser(path)
    if not expanded.startswith("~"):
        return expanded
    home = path.partition("/")[0]
    if home != "~" and os.path.exists(path):
        return path
    raise ConfigError(f"the path {path!r} begins with {home!r}, whose home folder is unknown; write the complete path")


def written_path(path: str) -> str:
    """Return a path of a configuration with the home folder in place of `~`.

    Args:
        path: the path as written.

    Raises:
        ConfigError: if the home folder is unknown, or the path has a variable such as `$SCRATCH`. A shell replaces
            variables, but a configuration file does not pass through a shell.
    """
    path = at_home(path)
    found = _VARIABLE.search(path)
    if found is not None and not Path(path).exists():
        raise ConfigError(
            f"the path {path!r} has the variable {found[0]}, and only a shell replaces variables; write the complete "
            "path in a file, or set it on the command line without single quotes"
        )
    return path
