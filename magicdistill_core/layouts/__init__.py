"""Maps between the tensor names of diffusers, of single model files, of ComfyUI and of LoRA files."""
