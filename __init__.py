"""MagicDistillation for ComfyUI: the entry point that ComfyUI looks for in a pack's folder."""

import sys as _sys

if _sys.version_info < (3, 11):  # noqa: UP036 - ComfyUI runs on Python 3.10 too, and nothing checks before it loads a pack
    raise ImportError(
        "MagicDistillation needs Python 3.11 or newer, and this ComfyUI runs on Python "
        + ".".join(map(str, _sys.version_info[:3]))
        + ": install ComfyUI with a newer Python, or remove the pack from custom_nodes."
    )

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():
    """The pack's extension. Imported late, so that this folder can be a package where there is no ComfyUI."""
    from .nodes import MagicDistillExtension

    return MagicDistillExtension()
