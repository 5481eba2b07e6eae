"""A server that runs training commands in forked processes; it is driven over stdin and stdout.

The server imports all modules once, so a forked process starts at once. A request is one line of JSON (see `Request`).
The answer is one line of JSON with the exit codes by rank (negative: the signal) and the output of the processes. The
processes have the environment of a launcher. A request can also ask for faults, such as a kill or a full disk.
"""

import gc
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from train.distributed import prepare_environment

prepare_environment()

# DeepSpeed imports this when it receives an optimizer, which takes longer than a tiny training.
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401

import train.run.trainer  # noqa: E402 - DeepSpeed reads the environment when it is imported
from train.cli import main  # noqa: E402
from train.engines.engine import Engine  # noqa: E402


@dataclass(frozen=True)
class Request:
    """A training and its faults.

    Attributes:
        arguments: the arguments of `magicdistill train`.
        then: the arguments of further trainings, which the same processes make one after another.
        processes: the number of processes.
        victim: the rank of the process that has the fault; None for all processes.
        die_at: the victim kills itself with SIGKILL before this file operation below `watched`, counted from 1.
        watched: the folder whose file operations are counted.
        signal_after: seconds between the first logged round and the signal to the victim.
        signal: the signal to send.
        log: the run's log of metrics, which shows when a round is done.
        file_limit: the largest file in bytes that the victim can write.
        free_space: the free space in bytes that the processes see on every disk.
        naive_accumulation: do not set the accumulation boundaries of engines.
        report: write the report at the end, which takes longer than a tiny training.
        folders: the working folder of each process, by rank; empty for the server's.
    """

    arguments: list[str]
    then: list[list[str]] = field(default_factory=list)
    processes: int = 1
    victim: int | None = None
    die_at: int | None = None
    watched: str = ""
    signal_after: float | None = None
    signal: int = signal.SIGKILL
    log: str = ""
    file_limit: int | None = None
    free_space: int | None = None
    naive_accumulation: bool = False
    report: bool = False
    folders: list[str] = field(default_factory=list)


def _die_at(operation: int, watched: str) -> None:
    """Kill this process just before its n-th file operation below a folder."""
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
            return
        # Only the removal of folders names files relative to the descriptor of their folder.
        inside = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        paths = (os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike))
        if not inside and not any(path.startswith(watched) for path in paths):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _live(request: Request, rank: int, port: int, output: str) -> None:
    """Run the training command in a forked process; never returns."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request.processes), MASTER_PORT=str(port))
    os.environ.update(MASTER_ADDR="127.0.0.1", COLUMNS="200")
    if request.folders:
        os.chdir(request.folders[rank])
    hit = request.victim is None or request.victim == rank
    if hit and request.die_at is not None:
        _die_at(request.die_at, request.watched)
    if hit and request.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.file_limit, request.file_limit))
    if request.free_space is not None:
        usage = SimpleNamespace(free=request.free_space)
        shutil.disk_usage = lambda path: usage  # type: ignore[assignment, misc]
    if request.naive_accumulation:
        Engine.backward = lambda engine, loss, *, last: engine.engine.backward(loss)  # type: ignore[method-assign]
    if not request.report:
        train.run.trainer.write_report = lambda run: run
    # DeepSpeed collects garbage at every start, which takes longer the more objects there are.
    gc.freeze()
    code = 0
    for arguments in (request.arguments, *request.then):
        code = code or _train(arguments)
    os._exit(code)


def _train(arguments: list[str]) -> int:
    """Train one configuration, and return the exit code."""
    sys.argv = ["magicdistill", "train", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _wait_for_line(log: Path, lines: int, children: list[int]) -> bool:
    """Wait until `log` has more than `lines` lines; False if the processes ended first."""
    while len(log.read_text().splitlines()) <= lines if log.exists() else True:
        if os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.005)
    return True


def serve(request: Request) -> dict[str, object]:
    """Carry out one request."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = Path(request.log)
    lines = len(log.read_text().splitlines()) if request.log and log.exists() else 0
    children, outputs = [], []
    for rank in range(request.processes):
        handle, output = tempfile.mkstemp()
        os.close(handle)
        outputs.append(Path(output))
        child = os.fork()
        if child == 0:
            _live(request, rank, port, output)
        children.append(child)
    if request.signal_after is not None and _wait_for_line(log, lines, children):
        time.sleep(request.signal_after)
        for rank, child in enumerate(children):
            if request.victim is None or request.victim == rank:
                os.kill(child, request.signal)
    codes: dict[int, int] = {}
    stopped = request.signal == signal.SIGSTOP and request.signal_after is not None
    for rank, child in sorted(enumerate(children), key=lambda item: stopped and item[0] == request.victim):
        if stopped and rank == request.victim:
            os.kill(child, signal.SIGKILL)
        codes[rank] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = [path.read_text(errors="replace") for path in outputs]
    for path in outputs:
        path.unlink()
    return {"codes": [codes[rank] for rank in range(request.processes)], "output": said}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(Request(**json.loads(line)))), file=answers, flush=True)
