"""The packages of the extra `curation`, which only scans need."""

from importlib.util import find_spec

from magicdistill_core.errors import MagicDistillError

_MODULES = {"cv2": "mediapipe", "mediapipe": "mediapipe", "pyarrow": "pyarrow", "scenedetect": "scenedetect-headless"}


class CurationError(MagicDistillError):
    """Raised when a scan, its manifest or a file of rules cannot be used."""


def require(*modules: str) -> None:
    """Check that packages of the extra `curation` are installed.

    Args:
        modules: names of modules, such as `cv2`.

    Raises:
        CurationError: if one is not; the message says how to install them.
    """
    if missing := sorted({_MODULES[module] for module in modules if find_spec(module) is None}):
        raise CurationError(
            f"{', '.join(missing)} must be installed to look at videos. Install the extra: "
            f"`uv sync --extra curation`, or `pip install {' '.join(missing)}`."
        )
