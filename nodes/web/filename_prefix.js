// Replaces %date:...% and %Node.widget% in the file name of Save portrait video when a workflow is queued, with ComfyUI's
// own function. ComfyUI's page does this by itself only for its own nodes.
import { app } from "../../scripts/app.js";
import { applyTextReplacements } from "../../scripts/utils.js";

app.registerExtension({
  name: "MagicDistillation.FilenamePrefix",
  nodeCreated(node) {
    if (node.comfyClass !== "MagicDistillSaveVideo") return;
    const widget = node.widgets?.find(({ name }) => name === "filename_prefix");
    if (widget) widget.serializeValue = () => applyTextReplacements(app, String(widget.value ?? ""));
  },
});
