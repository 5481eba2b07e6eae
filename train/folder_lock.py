"""A lock on a folder that is written: two processes never write it at once, also from two machines.

The lock is an operating system lock (`flock`) on a file in the folder. The system releases it when the process ends in
any way, also by `kill -9`. Linux passes it on to the server of an NFS folder. The file also names its holder.

Some network folders have no locks, or locks that other machines do not see. Therefore the holder also touches the file
regularly. A process on another machine takes the lock only after it has seen no touch for a minute.
"""

import errno
import fcntl
import json
import logging
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from magicdistill_core.errors import MagicDistillError, OutputError
from magicdistill_core.writable import check_output_folder

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# Seconds between two touches of the file, and seconds without a touch after which a holder on another machine is dead.
_TOUCH_SECONDS = 10.0
_DEAD_SECONDS = 60.0
# Without system locks: seconds until a process looks whether another one has written its name at the same moment.
_SETTLE_SECONDS = 2.0
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FolderInUseError(MagicDistillError):
    """Raised when another process writes the folder; the message names it."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        work: what it does, such as `magicdistill prepare`.
        process: its process id.
        machine: the name of its machine.
        boot: changes with every start of a machine; the same in all containers on it.
        since: local time at which it took the lock.
        token: different for every lock.
    """

    work: str
    process: int = field(default_factory=os.getpid)
    machine: str = field(default_factory=platform.node)
    boot: str = field(default_factory=lambda: boot_id())
    since: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(" ", "seconds"))
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        place = "this machine" if self.here else "another machine"
        return f"{self.work}, process {self.process} on {place} ({self.machine}), since {self.since}"

    @property
    def here(self) -> bool:
        """Whether the process is on this machine."""
        return self.boot == boot_id()


@contextmanager
def folder_lock(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of a folder inside the block. The folder is created if it does not exist.

    Created folders that are still empty at the end are removed.

    Of a run with several processes only the main process takes it.

    Args:
        folder: the folder that this process writes.
        work: what this process does, such as `magicdistill prepare`; a refused process shows it.

    Raises:
        FolderInUseError: if another process holds the lock.
        OutputError: if the folder cannot be written.
    """
    check_output_folder(folder)
    path = folder / LOCK_NAME
    created = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        lock = _Lock(path, Holder(work))
    except OSError as error:
        raise OutputError(
            f"The lock file {path} cannot be used ({error.strerror}). If it belongs to another user and nobody writes "
            f"the folder now, delete it; or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # not empty
            for place in created:
                place.rmdir()


class _Lock:
    """A held lock, with a thread that touches its file."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._file: int | None = _take(path, holder)
        # A forked child would keep the system's lock after this process was killed.
        os.register_at_fork(after_in_child=self._close)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._touch, args=(self._file,), name="folder lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        if self._file is None:  # a forked child does not hold the lock
            return
        self._end.set()
        self._thread.join()
        # A file that is not at its path any more, or names another process, is not ours to delete.
        if _is_at(self._file, self._path) and _read(self._path) == self._holder:
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _touch(self, file: int) -> None:
        while not self._end.wait(_TOUCH_SECONDS):
            try:
                os.utime(file)
                other = _read(self._path)
            except OSError as error:
                logger.warning("the lock %s cannot be touched (%s)", self._path, error)
                continue
            if other is not None and other != self._holder:
                logger.error("%s is now also written by %s. Stop one of the two.", self._path.parent, other)
                return


def _take(path: Path, holder: Holder) -> int:
    """Take the lock in the name of `holder`, and return its open file."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        try:
            locked = _system_lock(file, path)
            # A holder deletes the file at its end. Then the lock of the deleted file is worth nothing.
            if _is_at(file, path) and _former_holder_is_dead(path, locked):
                _write(file, holder)
                if not locked:
                    time.sleep(_SETTLE_SECONDS)
                    if (other := _read(path)) != holder:
                        raise _in_use(path, other)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _system_lock(file: int, path: Path) -> bool:
    """Lock the file, and return whether its file system has locks."""
    with suppress(PermissionError):
        os.fchmod(file, 0o666)  # other users may write a shared folder too
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path, _read(path)) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _former_holder_is_dead(path: Path, locked: bool) -> bool:
    """Wait until a former holder that did not delete the file is surely dead.

    Returns:
        True if nobody holds the lock; False if the file was deleted meanwhile.

    Raises:
        FolderInUseError: if the former holder touches the file.
    """
    former = _read(path)
    if former is None or (locked and former.here):  # the system would have refused the lock
        return True
    seen = _touched(path)
    if seen is None:
        return False
    # Both times are from the clock of the file server.
    with tempfile.TemporaryFile(dir=path.parent) as now:
        silent = os.fstat(now.fileno()).st_mtime - seen
    end = time.monotonic() + _DEAD_SECONDS - max(silent, 0.0)
    if silent < _DEAD_SECONDS:
        logger.info("%s was locked by %s. Looking for a minute whether it still works.", path.parent, former)
    while time.monotonic() < end:
        time.sleep(min(1.0, _TOUCH_SECONDS))
        touched = _touched(path)
        if touched is None:
            return False
        if touched != seen:
            raise _in_use(path, former)
    return True


def _in_use(path: Path, other: Holder | None) -> FolderInUseError:
    return FolderInUseError(
        f"{path.parent} is in use by another process{f': {other}' if other else ''}. Two processes must not write "
        f"one folder. Wait until that process has ended, end it, or choose another folder."
    )


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _touched(path: Path) -> float | None:
    """Return the time of the last touch; None if there is no file. NFS asks its server only when a file is opened."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _read(path: Path) -> Holder | None:
    """Return the process that a lock file names; None if it names none."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(file: int, holder: Holder) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(asdict(holder), indent=1).encode(), 0)
    os.fsync(file)


def boot_id() -> str:
    """Return a text that changes with every start of a machine, and is the same in all containers on it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return platform.node()
