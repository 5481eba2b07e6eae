"""What determines an input of a node: the nodes before it, with all their settings, as one hash."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def upstream_hash(prompt: Mapping[str, Any] | None, node_id: str | None, inputs: tuple[str, ...]) -> str:
    """Return the hash of everything that inputs of a node are computed from.

    The numbers of the nodes do not matter, and neither do nodes that do not lead to these inputs.

    Args:
        prompt: the running workflow in ComfyUI's API format; None outside of a run.
        node_id: the number of the node.
        inputs: names of its inputs.
    """
    if prompt is None or node_id is None or node_id not in prompt:
        return ""
    known: dict[str, str] = {}

    def of_value(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt:
            return [of_node(value[0]), value[1]]
        return value

    def of_node(number: str) -> str:
        if number not in known:
            node = prompt[number]
            values = {name: of_value(value) for name, value in sorted(node.get("inputs", {}).items())}
            text = json.dumps([node.get("class_type"), values], sort_keys=True, default=str)
            known[number] = hashlib.sha256(text.encode()).hexdigest()
        return known[number]

    own = prompt[node_id].get("inputs", {})
    found = {name: of_value(own[name]) for name in inputs if name in own}
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()
