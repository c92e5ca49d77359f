// Runs in ComfyUI's page: builds a described workflow out of the interface's own nodes and returns what the interface saves.
// Rows of groups lie under each other, columns of nodes side by side, by the sizes that the interface gives the nodes.
({ rows, id, packs }) => {
  const TITLE = 30; // the bar above a node
  const PAD = 12; // inside a group
  const GAP = 18; // between groups
  const HEAD = 44; // of a group
  // Nodes 2.0 draws nodes up to so much taller than the classic interface: measured with the interfaces 1.32.9 and 1.49.6.
  const TALLER = { ours: 46, others: 32 };
  const graph = window.app.graph;
  graph.clear();
  graph.id = id;
  const made = {};
  const described = rows.flat().flatMap((group) => group.columns.flat());

  const make = (from) => {
    const node = LiteGraph.createNode(from.type);
    if (!node) throw new Error(`The interface has no node ${from.type}`);
    graph.add(node);
    if (from.title) node.title = from.title;
    for (const [name, value] of Object.entries(from.settings)) {
      if (Array.isArray(value)) continue;
      const widget = name ? node.widgets?.find((one) => one.name === name) : node.widgets[0];
      if (!widget) throw new Error(`${from.key} (${from.type}) has no setting ${name}`);
      widget.value = value;
    }
    if (from.models.length) node.properties.models = from.models;
    // Which pack the node is from, as ComfyUI Manager writes it: the interface asks for packs that are missing by it.
    Object.assign(node.properties, packs[from.type]);
    made[from.key] = node;
    return node;
  };

  let top = 0;
  for (const row of rows) {
    let left = 0;
    let lowest = top;
    for (const group of row) {
      const start = left;
      let bottom = top;
      left += PAD;
      for (const column of group.columns) {
        let y = top + HEAD;
        const nodes = column.map((from) => make(from));
        const width = Math.max(group.width, ...nodes.map((node) => node.computeSize()[0]));
        for (const [place, node] of nodes.entries()) {
          const { type, tall, room } = column[place];
          const least = node.computeSize()[1];
          node.setSize([width, Math.max(tall, least)]);
          node.pos = [left, y + TITLE];
          const taller = /^(Annealing|Shapes)/.test(type) ? TALLER.ours : TALLER.others;
          y = node.pos[1] + Math.max(node.size[1], room, type === "MarkdownNote" ? 0 : least + taller) + PAD;
        }
        bottom = Math.max(bottom, y);
        left += width + PAD;
      }
      const frame = new LiteGraph.LGraphGroup(group.title);
      frame.color = group.colour;
      frame.pos = [start, top];
      frame.size = [left - start, bottom - top];
      graph.add(frame);
      lowest = Math.max(lowest, bottom);
      left += GAP;
    }
    // Frames of one row end together.
    for (const frame of graph.groups) if (frame.pos[1] === top) frame.size = [frame.size[0], lowest - top];
    top = lowest + GAP;
  }

  for (const from of described) {
    for (const [name, link] of Object.entries(from.settings)) {
      if (!Array.isArray(link)) continue;
      const [source, output] = link;
      // ComfyUI's older nodes write GUIDER where newer ones write guider.
      const slot = made[source].outputs.findIndex((one) => one.name.toLowerCase() === output.toLowerCase());
      const linked = slot >= 0 && made[source].connect(slot, made[from.key], made[from.key].findInputSlot(name));
      if (!linked) throw new Error(`${source}.${output} cannot be connected to ${from.key}.${name}`);
    }
  }
  const saved = graph.serialize();
  // What the window shows when it is opened: the upper left corner, below the bars, as small as text is still drawn well.
  saved.extra.ds = { scale: 0.7, offset: [100, 190] };
  return { saved: JSON.stringify(saved), ids: Object.fromEntries(Object.entries(made).map(([key, node]) => [key, node.id])) };
};
