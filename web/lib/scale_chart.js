// One run's guidance over its steps, one line per picture of the batch; the run before it stays as faint lines.
// Shown as the network's scale or, on the same steps, as the ordinary CFG that it amounts to.

const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, told apart by most colour-blind people, and dashes so that colour is never the only difference.
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"];
const DASHES = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4"];
const MARGIN = { left: 34, right: 10, top: 8, bottom: 22 };

export class ScaleChart {
  /** @param onFirst called when the first values arrive; @param words as words.js has them */
  constructor(onFirst, words) {
    this.words = words;
    this.onFirst = onFirst;
    this.run = null;
    this.previous = null;
    this.chosen = null; // "cfg" or "scale", as the user chose; null: as the run's form suggests
    this.cursor = null; // index of the call under the pointer, or chosen with the arrow keys
    this.element = html("div", "display:flex;flex-direction:column;gap:2px;width:100%;height:100%;box-sizing:border-box;padding:2px 4px;"
      + "font:11px sans-serif;color:var(--input-text,#ddd);background:var(--comfy-input-bg,#222);border-radius:4px;overflow:hidden");
    const head = this.element.appendChild(html("div", "display:flex;align-items:center;gap:4px;min-height:18px"));
    this.readout = head.appendChild(html("span", "flex:1;white-space:nowrap;overflow:hidden;text-overflow:ellipsis"));
    this.readout.setAttribute("role", "status");
    this.choice = head.appendChild(html("div", "display:none"));
    this.choice.setAttribute("role", "group");
    this.buttons = { cfg: this.choiceOf("cfg"), scale: this.choiceOf("scale") };
    this.plot = this.element.appendChild(document.createElementNS(SVG, "svg"));
    this.plot.style.cssText = "flex:1;width:100%;min-height:0;display:block";
    this.plot.setAttribute("tabindex", "0");
    this.plot.setAttribute("role", "img");
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.redraw()).observe(this.plot);
    this.name();
  }

  /** A button that chooses what is drawn. */
  choiceOf(kind) {
    const button = this.choice.appendChild(html("button", "font:inherit;color:inherit;cursor:pointer;padding:0 6px;"
      + "border:1px solid var(--border-color,#666)"));
    button.type = "button";
    button.addEventListener("click", () => {
      this.chosen = kind;
      this.redraw();
    });
    button.addEventListener("keydown", (event) => event.stopPropagation()); // the canvas has commands on the same keys
    return button;
  }

  /** Put the words in, again when another language's have come. */
  name(words = this.words) {
    this.words = words;
    this.choice.setAttribute("aria-label", words.shown);
    for (const [kind, button] of Object.entries(this.buttons)) {
      button.textContent = words[kind];
      button.title = words[`${kind}_is`];
    }
    if (!this.run) this.readout.textContent = words.hint;
    this.redraw();
  }

  /** Take in a message: calls of the run that is going on, or the first ones of a new run. */
  show(message) {
    // A guider that was made anew counts its runs from 1 again.
    if (!this.run || this.run.number !== message.run || message.first === 0) {
      if (!this.run) queueMicrotask(this.onFirst);
      this.previous = this.run;
      this.run = { number: message.run, steps: message.steps, folded: message.folded, lambdas: message.lambdas, calls: [] };
      this.cursor = null;
    }
    message.calls.forEach((call, i) => { this.run.calls[message.first + i] = call; });
    this.redraw();
  }

  /** What is drawn: the ordinary CFG where the sampler makes such steps, else the network's scale; or what the user chose. */
  get kind() {
    return this.chosen ?? (this.run?.folded ? "cfg" : "scale");
  }

  /** Draw at most once a frame, however fast the messages come. */
  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (this.run) this.draw();
    });
  }

  values(call) {
    return this.kind === "cfg" ? call.cfg_scale : call.scale;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (width < 40 || height < 40) return;
    const length = Math.max(this.run.steps, this.run.calls.length, 2);
    const shown = [this.run, this.previous].filter((run) => run).flatMap((run) => run.calls.flatMap((call) => this.values(call)));
    const [low, high] = limits(shown.filter(Number.isFinite));
    const x = (i) => MARGIN.left + (i / (length - 1)) * (width - MARGIN.left - MARGIN.right);
    const y = (v) => height - MARGIN.bottom - ((v - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    this.column = (px) => Math.round(((px - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (length - 1));

    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const value of ticks(low, high)) {
      parts.push(line(MARGIN.left, y(value), width - MARGIN.right, y(value), "var(--border-color,#555)", 0.5));
      parts.push(text(MARGIN.left - 4, y(value) + 3, short(value), "end"));
    }
    parts.push(text(MARGIN.left, height - 8, "1", "middle"), text(width - MARGIN.right, height - 8, String(length), "end"));
    parts.push(text((MARGIN.left + width - MARGIN.right) / 2, height - 8, this.words.step, "middle"));
    if (this.previous) parts.push(...this.lines(this.previous, x, y, 0.3));
    parts.push(...this.lines(this.run, x, y, 1));
    if (this.cursor !== null) {
      parts.push(line(x(this.cursor), MARGIN.top, x(this.cursor), height - MARGIN.bottom, "var(--input-text,#ddd)", 1));
    }
    this.plot.replaceChildren(...parts);
    this.describe();
  }

  /** One polyline per picture; a gap where a call has not arrived. */
  lines(run, x, y, opacity) {
    const pictures = Math.max(0, ...run.calls.map((call) => this.values(call).length));
    return Array.from({ length: pictures }, (_, b) => {
      let path = "";
      let drawing = false;
      run.calls.forEach((call, i) => {
        const value = this.values(call)[b];
        const known = Number.isFinite(value);
        if (known) path += `${drawing ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
        drawing = known;
      });
      return svg("path", { d: path, fill: "none", stroke: COLOURS[b % COLOURS.length], "stroke-width": 1.8, opacity,
        "stroke-dasharray": DASHES[b % DASHES.length], "stroke-linecap": "round" });
    });
  }

  /** The values at the cursor in words. The latest ones stand under the node already, so without a cursor only tools read them. */
  describe() {
    const { words, cursor, kind } = this;
    const i = cursor ?? this.run.calls.length - 1;
    const call = this.run.calls[i];
    const said = call ? `${words.step} ${i + 1}: ${words[kind]} ${range(this.values(call), kind === "cfg" ? 1 : 2)}` : "";
    this.readout.textContent = cursor === null ? "" : said;
    this.readout.title = call && cursor !== null ? `sigma ${short(call.sigma)}, ${words.gap} ${range(call.gap_norm, 1)}, `
      + `lambda ${range(this.run.lambdas, 2)}` : "";
    this.plot.setAttribute("aria-label", `${words.title}: ${words[kind]}. ${said}. ${words.keys}`);
    for (const [one, button] of Object.entries(this.buttons)) {
      button.setAttribute("aria-pressed", String(one === kind));
      button.style.background = one === kind ? "var(--border-color,#666)" : "transparent";
    }
    this.choice.style.display = "flex";
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    if (this.column && box.width) this.choose(this.column(((event.clientX - box.left) / box.width) * this.plot.clientWidth));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined && event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation(); // the canvas moves nodes with the same keys
    const last = (this.run?.calls.length ?? 0) - 1;
    this.choose(step === undefined ? null : (this.cursor ?? last) + step);
  }

  choose(index) {
    const last = (this.run?.calls.length ?? 0) - 1;
    this.cursor = index === null || last < 0 ? null : Math.min(Math.max(index, 0), last);
    this.redraw();
  }
}

/** A little more than the values' range, and never an empty one. */
function limits(values) {
  if (!values.length) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const room = Math.max((high - low) * 0.08, Math.abs(high) * 0.02, 0.02);
  return [low - room, high + room];
}

/** Three or four round values between low and high. */
function ticks(low, high) {
  const raw = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((candidate) => candidate >= raw);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

/** One number, or the least and the greatest of a batch. */
function range(values, digits) {
  const known = values.filter(Number.isFinite);
  if (!known.length) return "–";
  const [low, high] = [Math.min(...known), Math.max(...known)].map((value) => value.toFixed(digits));
  return low === high ? low : `${low} – ${high}`;
}

function short(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "–";
}

function html(name, style) {
  const element = document.createElement(name);
  element.style.cssText = style;
  return element;
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function line(x1, y1, x2, y2, stroke, width) {
  return svg("line", { x1, y1, x2, y2, stroke, "stroke-width": width });
}

function text(x, y, content, anchor) {
  const element = svg("text", { x, y, "text-anchor": anchor, fill: "var(--descrip-text,#999)", "font-size": 10 });
  element.textContent = content;
  return element;
}
