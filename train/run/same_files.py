"""Checks that all processes of a run read the same files, also on machines with copies of their own."""

from pathlib import Path

from magicdistill_core.errors import ConfigError
from magicdistill_core.hashes import hashed_files, weights_sha256

from ..distributed import beginning_together, from_all, rank
from ..folder_lock import boot_id


def shared_sha256(setting: str, path: Path) -> str:
    """Return the sha256 of a model file or a diffusers folder; a collective call.

    Each file is read by one process per machine. Reading the 26 GB of a 13B model in every process would take minutes.

    Args:
        setting: the setting that names it, for the message.
        path: the file or folder, which exists on every machine.

    Returns:
        `weights_sha256` of the path.

    Raises:
        MagicDistillError: on every process, if the weights are not the same on all machines, or cannot be read.
    """
    with beginning_together():
        stats = [file.stat() for file in hashed_files(path)]
    files = [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
    mine = (boot_id(), files)
    everybodys = from_all(mine)
    reader = everybodys.index(mine)
    with beginning_together():
        digest = weights_sha256(path) if rank() == reader else None
    digest = from_all(digest)[reader]
    assert digest is not None
    check_same(f"{setting} ({path})", digest)
    return digest


def check_same(what: str, digest: str) -> None:
    """Check that an input is the same on all machines; a collective call.

    Args:
        what: the setting and the path of the input, for the message.
        digest: this process's hash of it.

    Raises:
        ConfigError: on every process, if the hashes differ.
    """
    digests = from_all(digest)
    other = next((number for number, found in enumerate(digests) if found != digests[0]), None)
    if other is not None:
        raise ConfigError(
            f"{what} is not the same for all processes: its sha256 is {digests[0]} for process 0, and {digests[other]} "
            f"for process {other}. Copy the same files to all machines, or use a folder that they share."
        )
