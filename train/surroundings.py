"""What libraries expect of the user's surroundings: a name, a home folder, and a folder for temporary files.

A container may run with a user id that has no entry in passwd (`docker run --user`, OpenShift), and without a home
folder or with one that cannot be written.
"""

import getpass
import os
import tempfile
from pathlib import Path

from magicdistill_core.errors import OutputError


def complete_surroundings() -> None:
    """Set what is missing in the environment of this process. Call it before libraries are imported.

    Raises:
        OutputError: if there is no folder for temporary files.
    """
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OutputError(
            f"No temporary file can be written: {error.strerror}. Set TMPDIR to a folder that can be written and has "
            f"some free space."
        ) from error
    try:
        getpass.getuser()
    except (KeyError, OSError):
        # PyTorch names its cache after the user.
        os.environ["USER"] = f"user-{os.getuid()}"
    try:
        home = Path.home()
        if os.access(home, os.W_OK | os.X_OK):
            return
    except RuntimeError:
        # Libraries would write into a folder called `~`, or fail.
        os.environ["HOME"] = str(_own_folder(temporary))
    for name in ("TRITON_HOME", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(_own_folder(temporary)))


def _own_folder(temporary: Path) -> Path:
    """Return a folder of this user in the folder of temporary files, which other users may write too."""
    folder = temporary / f"magicdistill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    return folder
