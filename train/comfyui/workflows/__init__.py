"""Write the example workflows of the node pack from short definitions and the schemas of a running ComfyUI."""
