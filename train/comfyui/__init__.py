"""Start a ComfyUI with the node pack, and write the example workflows of the pack."""
