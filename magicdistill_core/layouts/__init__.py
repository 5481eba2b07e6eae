"""Key maps as data: how the same weights are named by diffusers, by Tencent's files and by ComfyUI."""
