// Two charts: lines with error bars, and histograms. Each is drawn to the width of its place and drawn again when that changes.

// Round values from at most `low` to at least `high`; `whole`: counts, which have no half.
function ticks(low, high, count, whole = false) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999 && (!whole || Number.isInteger(s)));
  const values = [];
  for (let i = Math.floor(low / step + 1e-9); i * step <= high + step * 0.999; i += 1) values.push(Number((i * step).toPrecision(12)));
  return values;
}

function drawn(caption, draw, { summary, entries = null }) {
  const place = el("div", {});
  const figure = el("figure", {}, el("figcaption", {}, caption), place, entries && legend(entries));
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(place.clientWidth);
    if (now === width || now === 0) return;
    width = now;
    place.replaceChildren(draw(now, summary));
  }).observe(place);
  return figure;
}

function frame(width, height, left, yTicks, y, format, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    yTicks.map((t) => [
      svg("line", { class: "grid", x1: left, x2: width, y1: y(t), y2: y(t) }),
      svg("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, format(t)),
    ]));
}

// series: {name, colour, dash, points: [{x, y, low, high}]}; `dodge` moves series apart so that error bars do not cover each other.
function lineChart(caption, { series, summary, height = 200, xTicks = null, xLabel = null, yFormat = short, dodge = 0, dots = false, ring = null, entries }) {
  const all = series.flatMap((s) => s.points).filter((p) => p.y !== null);
  if (!all.length) return null;
  const ys = all.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  const draw = (width, label) => {
    const yTicks = ticks(Math.min(...ys), Math.max(...ys), height > 220 ? 6 : 4);
    const left = 12 + 6.6 * Math.max(...yTicks.map((t) => yFormat(t).length));
    const [top, bottom] = [8, xLabel ? 40 : 24];
    const xs = all.map((p) => p.x);
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    const margin = dots ? 18 + dodge * series.length / 2 : 2;
    const x = (v) => left + margin + (width - left - 2 * margin) * (x1 === x0 ? 0.5 : (v - x0) / (x1 - x0));
    const [y0, y1] = [yTicks[0], yTicks[yTicks.length - 1]];
    const y = (v) => top + (height - top - bottom) * (1 - (v - y0) / (y1 - y0 || 1));
    const root = frame(width, height, left, yTicks, y, yFormat, label);
    const every = xTicks && Math.ceil((xTicks.length * 45) / (width - left)); // a name takes some 45 pixels
    const marks = xTicks ? xTicks.filter((_, i) => i % every === 0) : ticks(x0, x1, Math.max(2, Math.floor(width / 90))).filter((t) => t >= x0 && t <= x1);
    for (const t of marks) root.append(svg("text", { x: x(t.at ?? t), y: height - bottom + 17, "text-anchor": "middle" }, t.name ?? short(t)));
    if (xLabel) root.append(svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
    series.forEach((one, index) => {
      const shift = dodge * (index - (series.length - 1) / 2);
      const known = one.points.filter((p) => p.y !== null);
      const stroke = `var(${one.colour})`;
      const d = known.map((p, i) => `${i ? "L" : "M"}${(x(p.x) + shift).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
      root.append(svg("path", { class: one.dash ? "line dash" : "line", d, vars: { stroke } }));
      for (const p of dots ? known : []) {
        const px = x(p.x) + shift;
        const group = svg("g", { vars: { stroke, fill: stroke } }, svg("title", {}, p.title || `${one.name}: ${yFormat(p.y)}`));
        if (p.low !== undefined) {
          group.append(svg("line", { class: "whisker", x1: px, x2: px, y1: y(p.low), y2: y(p.high) }));
          for (const end of [p.low, p.high]) group.append(svg("line", { class: "whisker", x1: px - 3, x2: px + 3, y1: y(end), y2: y(end) }));
        }
        group.append(svg("circle", { cx: px, cy: y(p.y), r: 3.2, stroke: "none" }));
        root.append(group);
        if (ring === p.x && index === 0) root.append(svg("circle", { class: "ring", cx: px, cy: y(p.y), r: 7 }));
      }
    });
    return root;
  };
  const shown = entries || series.map((s) => ({ name: s.name, colour: s.colour, dash: s.dash }));
  return drawn(caption, draw, { summary, entries: shown.length > 1 ? shown : null });
}

// One histogram, with an optional part of each bar marked. `top`: the same y scale for several charts; `line`: a vertical mark.
function histogramChart(caption, { edges, counts, marked = null, summary, height = 150, top = 0, line = null, logarithmic = false, xLabel }) {
  const highest = Math.max(top, ...counts, 1);
  const draw = (width, label) => {
    const yTicks = ticks(0, highest, 3, true);
    const left = 12 + 6.6 * Math.max(...yTicks.map((t) => integer(t).length));
    const [above, bottom] = [8, 40];
    const scale = logarithmic ? Math.log : (v) => v;
    const [e0, e1] = [scale(edges[0]), scale(edges[edges.length - 1])];
    const x = (v) => left + (width - left - 4) * ((scale(v) - e0) / (e1 - e0 || 1));
    const y = (v) => above + (height - above - bottom) * (1 - v / yTicks[yTicks.length - 1]);
    const root = frame(width, height, left, yTicks, y, integer, label);
    counts.forEach((count, i) => {
      const box = { x: x(edges[i]) + 0.5, width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1) };
      const last = i === counts.length - 1;
      const range = last ? `from ${decimal(edges[i])}` : `${decimal(edges[i])} to ${decimal(edges[i + 1])}`;
      root.append(svg("g", {}, svg("title", {}, `${range}: ${count}${marked ? `, ${marked[i]} selected` : ""}`),
        svg("rect", { class: "bar", ...box, y: y(count), height: y(0) - y(count) }),
        marked && svg("rect", { class: "bar sel", ...box, y: y(marked[i]), height: y(0) - y(marked[i]) })));
    });
    if (line !== null) root.append(svg("line", { class: "median", x1: x(line), x2: x(line), y1: above, y2: y(0) }));
    const marks = Math.max(2, Math.floor(width / 75));
    for (let i = 0; i <= marks; i += 1) {
      const v = edges[Math.round(((edges.length - 1) * i) / marks)];
      const anchor = i === 0 ? "start" : i === marks ? "end" : "middle";
      root.append(svg("text", { x: x(v), y: height - bottom + 16, "text-anchor": anchor }, decimal(v)));
    }
    root.append(svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
    return root;
  };
  return drawn(caption, draw, { summary });
}
