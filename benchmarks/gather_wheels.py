"""Download wheels of the packages that are missing on a GPU machine: `python -m benchmarks.gather_wheels`.

The machine must have Python 3.12 with torch, torchvision, transformers, accelerate and their dependencies. PyAV is left
out because it is large. Without PyAV videos cannot be decoded, and that measurement is recorded as not run.
"""

import argparse
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.12"
PLATFORMS = ("2_39", "2_34", "2_31", "2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
PACKAGES = (
    "annotated-types",
    "certifi",
    "charset-normalizer",
    "click",
    "diffusers",
    "einops",
    "hjson",
    "idna",
    "importlib-metadata",
    "markdown-it-py",
    "mdurl",
    "msgpack",
    "ninja",
    "peft",
    "py-cpuinfo",
    "pydantic",
    "pydantic-core",
    "pygments",
    "pyyaml",
    "requests",
    "rich",
    "shellingham",
    "typer",
    "typing-extensions",
    "typing-inspection",
    "urllib3",
    "zipp",
)
# Published as source only. Its operators are compiled at first use.
FROM_SOURCE = ("deepspeed",)

logger = logging.getLogger(__name__)


def locked_versions(lock: Path) -> dict[str, str]:
    """Read the package versions from uv.lock, by package name."""
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    return {package["name"]: package["version"] for package in packages if "version" in package}


def gather(folder: Path) -> None:
    """Fill a folder with one wheel per package, at the locked version. Old wheels in it are deleted.

    Raises:
        subprocess.CalledProcessError: if pip does not find a wheel, or cannot build it.
    """
    versions = locked_versions(ROOT / "uv.lock")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in PLATFORMS]
    target = [f"--python-version={PYTHON}", "--implementation=cp", *platforms, "--platform=manylinux2014_x86_64"]
    wanted = [f"{name}=={versions[name]}" for name in PACKAGES]
    download = [*pip, "download", "--no-deps", "--only-binary=:all:", *target, f"--dest={folder}", *wanted]
    subprocess.run(download, check=True)
    sources = [f"{name}=={versions[name]}" for name in FROM_SOURCE]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", *sources]
    subprocess.run(build, check=True, env=os.environ | {"DS_BUILD_OPS": "0"})


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / ".whl", help="folder to fill")
    folder = parser.parse_args().out
    gather(folder)
    wheels = list(folder.glob("*.whl"))
    logger.info("%d wheels, %.1f MB, in %s", len(wheels), sum(w.stat().st_size for w in wheels) / 1e6, folder)


if __name__ == "__main__":
    main()
