"""MagicDistillation for ComfyUI: the entry point that ComfyUI looks for in a pack's folder."""

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():
    """The pack's extension. Imported late, so that this folder can be a package where there is no ComfyUI."""
    from .nodes import MagicDistillExtension

    return MagicDistillExtension()
