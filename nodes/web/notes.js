// Keeps the notes under this pack's nodes true. ComfyUI's page shows a note when its node runs, but never removes one, and
// shows none for a node whose result comes from the cache. Newer pages remove all notes when a run ends.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NOTE = "$$node-text-preview"; // the page's name of the widget
const texts = new WeakMap(); // the note of each node, shown or not
const isOurs = (node) => node.comfyClass?.startsWith("MagicDistill");

function* allNodes(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    yield* allNodes(node.subgraph);
  }
}

// The node of an id such as 5, or 5:3 for node 3 in the subgraph of node 5.
function nodeOf(id) {
  let node, graph = app.rootGraph ?? app.graph;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function show(node, text) {
  texts.set(node, text);
  const widget = node.widgets?.find(({ name }) => name === NOTE);
  if (widget) widget.value = text;
  // The page makes the widget, but only for nodes of the graph on the screen.
  else if (text && node.graph === app.canvas.graph) api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text });
}

function showRemoved() {
  for (const node of allNodes(app.rootGraph ?? app.graph)) {
    if (texts.get(node) && !node.widgets?.some(({ name }) => name === NOTE)) show(node, texts.get(node));
  }
}

app.registerExtension({
  name: "MagicDistillation.Notes",
  setup() {
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      // After the page's own listeners, which remove the notes.
      api.addEventListener(end, () => setTimeout(showRemoved));
    }
    // The first message of a run: nodes that are not in the cache will run again, so their notes are out of date.
    api.addEventListener("execution_cached", ({ detail }) => {
      const cached = new Set(detail.nodes.map(nodeOf));
      for (const node of allNodes(app.rootGraph ?? app.graph)) if (isOurs(node) && !cached.has(node)) show(node, "");
    });
  },
  nodeCreated(node) {
    if (!isOurs(node)) return;
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      if (output?.text) show(this, [output.text].flat().join("\n"));
    };
  },
});
