"""The core that the ComfyUI nodes and the trainer share: flow sampling, model files, losses and media."""
