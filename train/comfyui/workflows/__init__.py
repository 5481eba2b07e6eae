"""The example workflows of the node pack, written from short definitions and the schemas of a running ComfyUI."""
