// Shows the result of a node that samples and saves. ComfyUI's page shows the last preview of the sampling instead, as long
// as it is kept.
import { app } from "../../scripts/app.js";

// The page's store keeps previews for both of its renderers. Its older versions have only the list of the app.
function forgetPreviews(node) {
  const pinia = document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia;
  const store = pinia?._s?.get("nodeOutput");
  for (const id of Object.keys(app.nodePreviewImages ?? {})) {
    if (id.split(":").at(-1) !== String(node.id)) continue;
    if (store?.revokePreviewsByLocatorId) store.revokePreviewsByLocatorId(id);
    else delete app.nodePreviewImages[id];
  }
  node.imgs = undefined;
  node.graph?.setDirtyCanvas(true);
}

app.registerExtension({
  name: "MagicDistillation.Previews",
  nodeCreated(node) {
    if (node.comfyClass !== "MagicDistillLongVideo") return;
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      forgetPreviews(this);
      onExecuted?.call(this, output, ...rest);
    };
  },
});
