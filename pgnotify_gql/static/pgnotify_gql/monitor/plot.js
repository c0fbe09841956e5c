// Lines over the last two minutes, as SVG.

import { make, keyed, setText } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 150;
const MARGIN = { left: 52, right: 8, top: 8, bottom: 20 };
const STEPS = [1, 2, 5];
const GRID_LINES = 3;
const COLOURS = 6;

export class Plot {
  #svg;
  #legend;
  #format;
  #drawn = [];
  // A model keeps its colour, however busy it is.
  #colours = new Map();

  // `format(value)` is what stands at the axis and in the legend.
  constructor(svg, legend, format) {
    this.#svg = svg;
    this.#legend = legend;
    this.#format = format;
    svg.setAttribute("height", HEIGHT);
    new ResizeObserver(() => this.draw(this.#drawn)).observe(svg);
  }

  // `series` is [{ name, values, recent }], all of the same length.
  draw(series) {
    this.#drawn = series;
    const width = Math.max(120, this.#svg.clientWidth);
    const top = ceiling(Math.max(0, ...series.flatMap(({ values }) => values.map((value) => value ?? 0))));
    const x = (place, length) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * place) / Math.max(1, length - 1);
    const y = (value) => HEIGHT - MARGIN.bottom - ((HEIGHT - MARGIN.top - MARGIN.bottom) * Math.max(0, value)) / top;
    const parts = [...this.#grid(width, top, y)];
    for (const { name, values } of series) {
      parts.push(draw("path", { class: `pm-line pm-line-${this.#colour(name)}`, d: path(values, x, y) }));
    }
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.replaceChildren(...parts);
    this.#tell(series);
  }

  *#grid(width, top, y) {
    for (let line = 0; line <= GRID_LINES; line++) {
      const value = (top * line) / GRID_LINES;
      yield draw("line", { class: "pm-grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) });
      yield label(this.#format(value), { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" });
    }
    yield label("2 min ago", { x: MARGIN.left, y: HEIGHT - 4 });
    yield label("now", { x: width - MARGIN.right, y: HEIGHT - 4, "text-anchor": "end" });
  }

  #tell(series) {
    keyed(
      this.#legend,
      series,
      ({ name }) => name,
      ({ name }) => make("li", {}, make("span", { class: "pm-swatch" }), make("span", {}, name), make("b")),
      (item, { name, recent }) => {
        item.firstChild.className = `pm-swatch pm-swatch-${this.#colour(name)}`;
        setText(item.lastChild, recent === null ? "none" : this.#format(recent));
      },
    );
  }

  #colour(name) {
    if (!this.#colours.has(name)) this.#colours.set(name, this.#colours.size % COLOURS);
    return this.#colours.get(name);
  }
}

// The line is broken where there is no value; a value alone is a dot.
function path(values, x, y) {
  let commands = "";
  values.forEach((value, place) => {
    if (value === null) return;
    const point = `${x(place, values.length).toFixed(1)} ${y(value).toFixed(1)}`;
    const joined = place > 0 && values[place - 1] !== null;
    commands += joined ? `L${point}` : `M${point}h0`;
  });
  return commands;
}

// The next round number, so that the axis has short labels.
function ceiling(value) {
  if (value <= 0) return GRID_LINES;
  const each = value / GRID_LINES;
  const power = 10 ** Math.floor(Math.log10(each));
  return (STEPS.find((step) => step * power >= each) ?? 10) * power * GRID_LINES;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function label(text, attributes) {
  const element = draw("text", { class: "pm-label-of-plot", ...attributes });
  element.textContent = text;
  return element;
}
