// The live chart under the Annealing Guider and the Annealing Guidance patch: listens for what a run used and draws it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ScaleChart } from "./lib/scale_chart.js";
import { ENGLISH, wordsOf } from "./lib/words.js";

const EVENT = "annealing_guidance.scale"; // guidance/live.py says what it carries
const WIDGET = "annealing_scale_chart";
const HEIGHT = 170;
const HINT_HEIGHT = 40;
const NODES = ["AnnealingGuider", "AnnealingModelPatch", "AnnealingSweep"];
let words = ENGLISH;
let waiting = []; // charts made before the words of the language came

app.registerExtension({
  name: "annealing_guidance.chart",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) chartOf(node);
  },
  setup() {
    // Not waited for: ComfyUI waits for every extension. The charts that are there take the words when they come.
    wordsOf(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en", api)
      .then((found) => {
        words = found;
        for (const chart of waiting) chart.name(words);
        waiting = null;
      })
      .catch((error) => {
        console.warn("Annealing guidance: no translations, so the chart stays English.", error);
        waiting = null;
      });
    api.addEventListener(EVENT, ({ detail }) => {
      const node = nodeOf(detail.node);
      if (node) chartOf(node).show(detail);
    });
  },
});

/** The node of an execution id. Inside subgraphs it names every node on the way: "5:12". */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

/**
 * The node's chart. Made with the node, for Nodes 2.0 doesn't show what is added later; one line high until values arrive.
 */
function chartOf(node) {
  const widget = node.widgets?.find((candidate) => candidate.name === WIDGET);
  if (widget) return widget.chart;
  const chart = new ScaleChart(() => makeRoom(node, chart), words);
  waiting?.push(chart);
  const added = node.addDOMWidget(WIDGET, WIDGET, chart.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // it shows what a run did, and there is nothing to set
    getMinHeight: () => (chart.run ? HEIGHT : HINT_HEIGHT),
    getMaxHeight: () => (chart.run ? undefined : HINT_HEIGHT),
    getValue: () => "",
    setValue: () => {},
  });
  added.serialize = false; // nothing of it in the saved workflow
  added.chart = chart;
  return chart;
}

/** Let the node grow for its first chart; after that its size is the user's. */
function makeRoom(node, chart) {
  chart.element.style.minHeight = `${HEIGHT}px`;
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  node.setDirtyCanvas(true, true);
}
