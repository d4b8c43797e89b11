// Building blocks: elements from data as text only, and number formats.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const section = (id) => document.getElementById(id);
const sum = (values) => values.reduce((total, value) => total + value, 0);

const integer = (value) => Math.round(value).toLocaleString("en-US");
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`;
const decimal = (value, digits = 2) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
const phrase = (name) => name.replaceAll("_", " ");
const titled = (name) => phrase(name).replace(/^./, (letter) => letter.toUpperCase());
const plural = (count, one, many = `${one}s`) => `${integer(count)} ${count === 1 ? one : many}`;

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

function short(value) {
  const size = Math.abs(value);
  const digits = (part, count) => Number(part.toPrecision(count));
  if (size >= 1e6) return `${digits(value / 1e6, 3)} M`;
  if (size >= 1e4) return `${digits(value / 1e3, 3)} k`;
  const text = size !== 0 && size < 0.0001 ? digits(value, 3).toExponential() : String(digits(value, 4));
  return text.replaceAll("-", "−");
}

// rows: arrays of cells; a cell is text or a node. The first cell of a row is its header. The caption stays where it is when the table scrolls.
function table(heads, rows, { caption = null, className = "", rowClass = () => null, words = [] } = {}) {
  const cell = (content, index) => {
    const inner = content && content.nodeType ? content : document.createTextNode(String(content));
    return index === 0 ? el("th", { scope: "row" }, inner) : el("td", { class: words.includes(index) && "left" }, inner);
  };
  const box = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || heads.join(", ") },
    el("table", { class: className },
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: words.includes(i) && "left" }, head)))),
      el("tbody", {}, rows.map((row, i) => el("tr", { class: rowClass(i) }, row.map(cell))))));
  return caption ? [el("p", { class: "hint" }, caption), box] : [box];
}

// The head of a column whose rows are of `count` examples, where this is not what the caption says.
function counted(name, count) {
  return el("span", {}, name, el("br"), el("span", { class: "ci" }, `n = ${integer(count)}`));
}

function withInterval(value, interval) {
  const span = el("span", {}, percent(value));
  if (interval) span.append(" ", el("span", { class: "ci" }, `${(100 * interval[0]).toFixed(0)}–${(100 * interval[1]).toFixed(0)}`));
  return span;
}

// A row of coloured parts, each {share, className, title}; shares are of the widest row.
function track(parts) {
  return el("div", { class: "track", "aria-hidden": "true" },
    parts.map(({ share, className, title }) => el("i", { class: className, title, vars: { width: `${Math.max(0, 100 * share).toFixed(2)}%` } })));
}

function legend(entries) {
  return el("ul", { class: "legend" }, entries.map(({ name, colour, dash, box }) =>
    el("li", {}, el("i", { class: [dash && "dash", box && "box"].filter(Boolean).join(" "), vars: { "border-color": `var(${colour})` } }), name)));
}
