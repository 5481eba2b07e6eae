"""A real ComfyUI with the pack in it, and the example workflows that are written for it."""
