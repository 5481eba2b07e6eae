"""The core that the ComfyUI nodes and the trainer share: flow sampling, checkpoints, objectives, the pocket model."""
