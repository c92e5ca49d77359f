// The live chart under the Annealing Guider and the Annealing Guidance patch: listens for what a run used and draws it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ScaleChart } from "./lib/scale_chart.js";

const EVENT = "annealing_guidance.scale"; // guidance/live.py says what it carries
const WIDGET = "annealing_scale_chart";
const HEIGHT = 170;

app.registerExtension({
  name: "annealing_guidance.chart",
  setup() {
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

/** The node's chart, made when its first values arrive: a server that never sends any leaves the node as it is. */
function chartOf(node) {
  const widget = node.widgets?.find((candidate) => candidate.name === WIDGET);
  if (widget) return widget.chart;
  const chart = new ScaleChart();
  const added = node.addDOMWidget(WIDGET, WIDGET, chart.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
    getValue: () => "",
    setValue: () => {},
  });
  added.serialize = false; // nothing of it in the saved workflow
  added.chart = chart;
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  node.setDirtyCanvas?.(true, true);
  return chart;
}
