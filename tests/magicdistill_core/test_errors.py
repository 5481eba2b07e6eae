"""Names of the exception classes, as ComfyUI shows them."""

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest

from magicdistill_core import errors
from magicdistill_core.taehv import TAEHVError

CORE = Path(errors.__file__).parent


@pytest.fixture(params=["/home/ann/ComfyUI/custom_nodes/pack", r"C:\ComfyUI\custom_nodes\pack"])
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the core as ComfyUI does: as a part of a module whose name is a path."""
    name = f"{request.param}.magicdistill_core"
    for part, file in ((name, "__init__.py"), (f"{name}.errors", "errors.py")):
        spec = importlib.util.spec_from_file_location(part, CORE / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, part, module)
        spec.loader.exec_module(module)
    return module


def test_no_class_shows_a_path(loaded: ModuleType) -> None:
    kinds = [kind for kind in vars(loaded).values() if isinstance(kind, type)]
    assert len(kinds) >= 4
    # ComfyUI shows the module and the name of the class. A class in another module of the pack is included.
    base = loaded.MagicDistillError
    kinds.append(type("TAEHVError", (base,), {"__module__": f"{loaded.__name__.removesuffix('errors')}taehv"}))
    assert {kind.__module__ for kind in kinds} == {"MagicDistillation"}


def test_elsewhere_the_classes_keep_their_modules_and_can_be_pickled() -> None:
    for kind in (errors.VideoError, TAEHVError):
        assert kind.__module__.startswith("magicdistill_core.")
        assert type(pickle.loads(pickle.dumps(kind("a")))) is kind
