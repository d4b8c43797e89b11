// The page: one function per section, each fed from the report object.

const { report, explorer } = JSON.parse(document.getElementById("data").textContent);
const GROUPS = ["easy", "medium", "hard", "no_call"];
const iterationName = (k) => (k === 0 ? "warm-up" : `iteration ${k}`);
const evaluated = (dataset) => report.evaluations.filter((e) => e.dataset === dataset).sort((a, b) => a.iteration - b.iteration);
const put = (id, ...content) => section(id).append(...content.flat(Infinity).filter(Boolean));
const nothing = (text) => el("p", { class: "hint" }, text);

function headline() {
  section("run-name").textContent = report.run;
  const { model, data } = report.config;
  section("run-facts").textContent = [phrase(report.method), `model ${model.path}`, `data ${data.source}`, `seed ${report.seed}`, `configuration ${report.config_digest}`].join(" · ");
  section("page-foot").textContent = `report.json version ${report.schema_version}. Intervals are 95 %: Wilson for one accuracy and for pass@k, Agresti-Min for a paired difference.`;
}

function summary() {
  const held = evaluated("held_out");
  const first = held.find((e) => e.iteration === 0);
  const best = held.find((e) => e.iteration === report.best_iteration);
  const exact = (e) => (e ? percent(e.exact_match) : "–");
  const interval = (e) => (e ? `${percent(e.ci95[0])} to ${percent(e.ci95[1])}` : "not measured");
  const tile = (name, big, sub, tone = "") => el("div", {}, el("dt", {}, name), el("dd", { class: `big ${tone}` }, big), el("dd", { class: "sub" }, sub));
  const { gain } = report;
  const certain = gain && (gain.ci95[0] > 0 || gain.ci95[1] < 0);
  const tone = certain ? (gain.difference > 0 ? "up" : "down") : "";
  put("summary", el("dl", { class: "tiles" },
    tile("After the warm-up", exact(first), interval(first)),
    tile(report.best_iteration ? `Kept: iteration ${report.best_iteration}` : "Kept: the warm-up", exact(best), interval(best)),
    tile("Difference, in points", gain ? points(gain.difference) : "–", gain ? `${points(gain.ci95[0])} to ${points(gain.ci95[1])}, McNemar p\u00a0${gain.p_value < 0.001 ? "<\u00a00.001" : gain.p_value.toFixed(3)}` : "nothing to compare", tone),
    tile("Stage time", duration(sum(report.stages.map((s) => s.seconds))), `${short(sum(report.stages.map((s) => s.tokens)))} tokens, ${plural(report.stages.length, "stage")}`)));
  if (held.length) put("summary", el("p", { class: "verdict" }, verdict(first, gain, certain)));
}

function verdict(first, gain, certain) {
  const chosen = report.best_by === "validation" ? "The iteration is chosen on a validation set that is not reported here." : "There is no validation set, so the last iteration stands.";
  if (!gain) return `${report.best_iteration === 0 ? "The warm-up is kept. " : ""}${chosen}`;
  const flips = `Of ${integer(gain.count)} held-out examples, ${integer(gain.wins)} became right and ${integer(gain.losses)} became wrong.`;
  return `${flips} ${certain ? "" : "The interval includes zero: this run alone does not show a difference. "}${chosen}`;
}

function accuracy() {
  const held = evaluated("held_out");
  if (!held.length) { put("accuracy", nothing("No evaluation is finished yet.")); return; }
  const point = (name, e, g) => ({ x: e.iteration, y: g.exact_match, low: g.ci95[0], high: g.ci95[1], title: `${name}, ${iterationName(e.iteration)}: ${percent(g.exact_match)} (${percent(g.ci95[0])} to ${percent(g.ci95[1])}), ${plural(g.count, "example")}` });
  const marks = held.map((e) => ({ at: e.iteration, name: e.iteration === 0 ? "warm-up" : String(e.iteration) }));
  const shared = { xTicks: marks, xLabel: "iteration", yFormat: (v) => `${Number((100 * v).toFixed(2))} %`, dots: true, height: 260 };
  const whole = [{ name: "held-out", colour: "--s-all", points: held.map((e) => point("held-out", e, e)) }];
  const valid = evaluated("validation");
  if (valid.length) whole.push({ name: "validation", colour: "--s-validation", dash: true, points: valid.map((e) => point("validation", e, e)) });
  const groups = GROUPS.filter((g) => held.some((e) => e.groups[g])).map((g) => ({ name: phrase(g), colour: `--s-${g}`, points: held.filter((e) => e.groups[g]).map((e) => point(phrase(g), e, e.groups[g])) }));
  put("accuracy",
    el("p", { class: "hint" }, `Exact match: every call right in name, arguments and typed values. Bars are 95 % intervals${report.best_iteration === null ? "" : "; the ring marks the iteration that is kept"}.`),
    el("div", { class: "panels two" },
      lineChart("All examples", { ...shared, series: whole, dodge: 10, ring: report.best_iteration, summary: `Exact match by iteration: ${held.map((e) => `${iterationName(e.iteration)} ${percent(e.exact_match)}`).join(", ")}` }),
      groups.length ? lineChart("Held-out, by difficulty and where no tool fits", { ...shared, series: groups, dodge: 7, summary: "Exact match by iteration for each difficulty; the table below has the numbers" }) : null));
  const ks = [...new Set(held.flatMap((e) => Object.keys(e.pass_at_k)))].sort((a, b) => a - b);
  const sampled = Math.max(...held.map((e) => e.pass_examples));
  const cell = (g) => (g ? withInterval(g.exact_match, g.ci95) : "–");
  put("accuracy", table(
    ["Adapter", "All", ...GROUPS.map(titled), ...(valid.length ? [counted("Validation", valid[0].count)] : []), ...ks.map((k) => counted(`pass@${k}`, sampled))],
    held.map((e) => [iterationName(e.iteration) + (e.iteration === report.best_iteration ? " (kept)" : ""), cell(e), ...GROUPS.map((g) => cell(e.groups[g])),
      ...(valid.length ? [cell(valid.find((v) => v.iteration === e.iteration))] : []), ...ks.map((k) => (k in e.pass_at_k ? withInterval(e.pass_at_k[k], e.pass_at_k_ci95[k]) : "–"))]),
    { caption: `Held-out exact match${ks.length ? " and pass@k" : ""} with 95 % interval, ${plural(held[0].count, "example")}`, rowClass: (i) => (held[i].iteration === report.best_iteration ? "kept" : null) }));
  const kinds = [...new Set(held.flatMap((e) => Object.keys(e.errors)))];
  if (kinds.length) put("accuracy", table(["Adapter", ...kinds.map(titled), "Cut off"], held.map((e) => [iterationName(e.iteration), ...kinds.map((kind) => integer(e.errors[kind] || 0)), integer(e.truncated)]), { caption: "Wrong answers by kind. Cut off: of all answers, right ones too, those that reached the longest response." }));
}

function training() {
  if (!report.training.length) { put("training", nothing("No training stage is finished yet.")); return; }
  for (const [stage, title] of [["warmup", "Warm-up"], ["dpo", "Iterations"]]) {
    const curves = report.training.filter((curve) => curve.stage === stage);
    if (!curves.length) continue;
    const some = distinct(curves);
    const left = some.length < curves.length && el("p", { class: "hint" }, `${some.length} of ${curves.length} iterations; report.json has all.`);
    put("training", el("h3", {}, title), left, el("div", { class: "panels" }, panelsOf(some)));
  }
}

// As many curves as colours can tell apart: of more, four from the first to the last iteration, and the kept one.
function distinct(curves) {
  if (curves.length <= 5) return curves;
  const spread = [0, 1, 2, 3].map((i) => curves[Math.round((i * (curves.length - 1)) / 3)]);
  return curves.filter((curve) => spread.includes(curve) || curve.iteration === report.best_iteration);
}

const CURVES = { learning_rate: "Learning rate", kl_reference: "KL to the reference", logps: "Log-probabilities", "nll/chosen": "NLL of chosen", grad_norm: "Gradient norm" };
const curveName = (name) => CURVES[name] || titled(name.replaceAll("/", ", "));

// Chosen and rejected share a panel: their distance is what preference training moves.
function panelsOf(curves) {
  const curriculum = curves.some((c) => new Set(c.series.phase).size > 1);  // a mixed one has a single phase and nothing to show
  const names = [...new Set(curves.flatMap((c) => Object.keys(c.series)))].filter((n) => n !== "tokens" && (n !== "phase" || curriculum));
  const rejected = (name) => (name.endsWith("chosen") ? name.replace(/chosen$/, "rejected") : null);
  const second = new Set(names.map(rejected).filter((n) => n && names.includes(n)));
  const colour = (i) => (curves.length === 1 ? "--k3" : `--k${1 + Math.round((4 * i) / (curves.length - 1))}`);
  return names.filter((name) => !second.has(name)).map((name) => {
    const pair = second.has(rejected(name)) ? rejected(name) : null;
    const of = (series, dash) => curves.flatMap((c, i) => (c.series[series] ? [{
      name: iterationName(c.iteration), colour: colour(i), dash, points: c.updates.map((u, at) => ({ x: u, y: c.series[series][at] })) }] : []));
    const entries = curves.map((c, i) => ({ name: iterationName(c.iteration), colour: colour(i) }));
    if (pair) entries.push({ name: "rejected", colour: "--faint", dash: true });
    const caption = pair ? `${curveName(name.replace(/[/_ ]?chosen$/, ""))}: chosen and rejected` : curveName(name);
    return lineChart(caption, { series: [...of(name), ...(pair ? of(pair, true) : [])], entries, height: 170, xLabel: "update", summary: `${caption} by update` });
  }).filter(Boolean);
}

function perplexity() {
  const adapters = report.perplexities;
  if (adapters.length) put("perplexity", adapterPerplexities(adapters));
  else put("perplexity", nothing("No evaluation is finished yet, or no validation example has a ground-truth response."));
  const scored = report.iterations.filter((iteration) => iteration.perplexity);
  if (scored.length) put("perplexity", bufferPerplexities(scored));
}

function adapterPerplexities(adapters) {
  const last = adapters[adapters.length - 1].iteration;
  const kept = (k) => (k === report.best_iteration ? ", kept" : "");
  const shown = adapters.filter((a) => [0, last, report.best_iteration].includes(a.iteration));
  const top = Math.max(...shown.flatMap((a) => a.histogram.counts));
  const place = (k) => (shown.length === 1 ? titled(iterationName(k)) : `${k === 0 ? "Before" : "After"}: ${iterationName(k)}`);
  return [
    el("p", { class: "hint" }, "Perplexity of the ground-truth response under an adapter, on the same validation examples for each. The scale is logarithmic and shared; the dotted line is the median."),
    el("div", { class: "panels" }, shown.map((a) => histogramChart([el("b", {}, place(a.iteration)), `${kept(a.iteration)}, median ${decimal(a.median)}, n = ${integer(a.count)}`],
      { ...a.histogram, top, line: a.median, logarithmic: true, xLabel: "perplexity", summary: `Perplexity of ${plural(a.count, "ground truth")} under ${iterationName(a.iteration)}: median ${decimal(a.median)}, 90th percentile ${decimal(a.p90)}` }))),
    table(["Adapter", "Examples", "Geometric mean", "Median", "90th percentile"], adapters.map((a) => [`${iterationName(a.iteration)}${a.iteration === report.best_iteration ? " (kept)" : ""}`, integer(a.count), decimal(a.geometric_mean), decimal(a.median), decimal(a.p90)]),
      { rowClass: (i) => (adapters[i].iteration === report.best_iteration ? "kept" : null) }),
  ];
}

// What the charts above do not show: which part of the buffer is hard, and what of it was selected.
function bufferPerplexities(scored) {
  const top = Math.max(...scored.flatMap((iteration) => iteration.perplexity.histogram.counts));
  return [
    el("h3", {}, "The buffer, and what of it was selected for search"),
    el("p", { class: "hint" }, "Scored at the start of an iteration by the adapter of the one before."),
    el("div", { class: "panels" }, scored.map((iteration) => {
      const p = iteration.perplexity;
      return histogramChart([el("b", {}, titled(iterationName(iteration.iteration))), `, scored by ${iterationName(iteration.iteration - 1)}, median ${decimal(p.median)}, n = ${integer(p.count)}`],
        { ...p.histogram, marked: p.selected.counts, top, line: p.median, logarithmic: true, xLabel: "perplexity", summary: `Perplexity of the buffer in ${iterationName(iteration.iteration)}: median ${decimal(p.median)}, 90th percentile ${decimal(p.p90)}` });
    })),
    legend([{ name: "not selected", colour: "--k1", box: true }, { name: "selected for search", colour: "--k3", box: true }]),
    table(["Iteration", "Scored", "Selected", "Mean", "Median", "90th percentile"], scored.map((iteration) => [iteration.iteration, integer(iteration.scored), integer(iteration.selected), decimal(iteration.perplexity.mean), decimal(iteration.perplexity.median), decimal(iteration.perplexity.p90)])),
  ];
}

function pairs() {
  const searched = report.iterations.filter((iteration) => iteration.trees || iteration.pair_statistics);
  const iterations = searched.filter((iteration) => iteration.pair_statistics);
  if (searched.length) put("pairs",
    table(["Iteration", "Trees", "Right samples", "Pairs", "Injected", "Mean gap", "N chosen", "N rejected", "Sampled tokens", "Updates"], searched.map((iteration) => {
      const p = iteration.pair_statistics || {};
      return [iteration.iteration, integer(iteration.trees), percent(iteration.pass_rate), p.count === undefined ? "–" : integer(p.count), percent(iteration.injected_fraction, 0), decimal(p.mean_gap), decimal(p.mean_chosen_visits, 1), decimal(p.mean_rejected_visits, 1), integer(iteration.sampled_tokens), integer(iteration.updates)];
    }), { caption: "Injected: pairs whose chosen side is the inserted ground-truth step. Gap: Q of chosen minus Q of rejected. Sampled tokens: by the search, and for pass rates where these select." }));
  if (!iterations.length) { put("pairs", nothing("This method makes no preference pairs.")); return; }
  const kept = iterations.filter((iteration) => iteration.pairs);
  const top = Math.max(0, ...kept.flatMap((iteration) => iteration.pair_statistics.gap.counts));
  put("pairs", el("div", { class: "panels" }, kept.map((iteration) =>
    histogramChart(`Q gap, iteration ${iteration.iteration}`, { ...iteration.pair_statistics.gap, top, xLabel: "Q chosen − Q rejected", summary: `Gap of ${plural(iteration.pairs, "pair")}, mean ${decimal(iteration.pair_statistics.mean_gap)}` }))));
  put("pairs", el("h3", {}, "States with two or more visited steps, by what became of them"), reasonTable("States", iterations.map((iteration) => [`iteration ${iteration.iteration}`, { "gave a pair": iteration.pairs, ...iteration.pair_statistics.dropped }])));
}

// rows: [name, {reason: count}]; columns are the reasons of all rows.
function reasonTable(head, rows) {
  const reasons = [...new Set(rows.flatMap(([, counts]) => Object.keys(counts)))];
  return table([head, ...reasons.map(titled)], rows.map(([name, counts]) => [name, ...reasons.map((reason) => integer(counts[reason] || 0))]));
}

// entries: [words, iteration, count]; one row per wording, one column per iteration, and a bar of the total.
function matrix(heads, entries, columnName) {
  const iterations = [...new Set(entries.map(([, k]) => k))].sort((a, b) => a - b);
  const rows = new Map();
  for (const [words, k, count] of entries) {
    const key = JSON.stringify(words);
    if (!rows.has(key)) rows.set(key, { words, counts: new Map() });
    rows.get(key).counts.set(k, count);
  }
  const list = [...rows.values()].map((row) => ({ ...row, total: sum([...row.counts.values()]) }));
  const most = Math.max(1, ...list.map((row) => row.total));
  return table([...heads, ...iterations.map(columnName), "Total", ""],
    list.map((row) => [...row.words, ...iterations.map((k) => (row.counts.has(k) ? integer(row.counts.get(k)) : "–")), integer(row.total), track([{ share: row.total / most, className: "fill-count", title: `${row.total}` }])]),
    { className: "bars", words: heads.map((_, i) => i) });
}

function dropped() {
  const entries = report.stages.flatMap((s) => Object.entries(s.dropped).map(([reason, count]) => [[s.name, phrase(reason)], s.iteration, count]));
  put("dropped", el("h3", {}, "Records that a stage could not use"),
    entries.length ? matrix(["Stage", "Reason"], entries, (k) => (k === 0 ? "Before" : `Iteration ${k}`)) : nothing("No stage dropped anything."));
  const stops = report.iterations.flatMap((iteration) => Object.entries(iteration.stopped).map(([reason, count]) => [[phrase(reason)], iteration.iteration, count]));
  if (stops.length) put("dropped", el("h3", {}, "Why searches ended, in trees"), matrix(["Reason"], stops, (k) => `Iteration ${k}`));
}

const stageName = (s) => (s.name === "prepare" || s.name === "warmup" ? s.name : `${s.name}, ${s.iteration === 0 ? "warm-up" : `iteration ${s.iteration}`}`);

function cost() {
  if (!report.stages.length) { put("cost", nothing("No stage is finished yet.")); return; }
  const longest = Math.max(...report.stages.map((s) => s.seconds), 1e-9);
  const memory = report.stages.some((s) => s.peak_memory_bytes !== null);
  const rate = (s) => (s.tokens && s.seconds > s.startup_seconds ? short(s.tokens / (s.seconds - s.startup_seconds)) : "–");
  const rows = report.stages.map((s) => [stageName(s), duration(s.startup_seconds), duration(Math.max(0, s.seconds - s.startup_seconds)), s.tokens ? integer(s.tokens) : "–", rate(s),
    ...(memory ? [s.peak_memory_bytes === null ? "–" : `${(s.peak_memory_bytes / 2 ** 30).toFixed(1)} GiB`] : []),
    track([{ share: s.startup_seconds / longest, className: "fill-start", title: `start-up ${duration(s.startup_seconds)}` }, { share: Math.max(0, s.seconds - s.startup_seconds) / longest, className: "fill-work", title: `work ${duration(Math.max(0, s.seconds - s.startup_seconds))}` }])]);
  const startup = sum(report.stages.map((s) => s.startup_seconds));
  rows.push(["all stages", duration(startup), duration(sum(report.stages.map((s) => s.seconds)) - startup), integer(sum(report.stages.map((s) => s.tokens))), "", ...(memory ? [""] : []), ""]);
  put("cost",
    el("p", { class: "hint" }, "Start-up is imports and loading the model; work is the rest. Stages that were reused from another run show what they cost when they ran."),
    legend([{ name: "start-up", colour: "--k1", box: true }, { name: "work", colour: "--k3", box: true }]),
    table(["Stage", "Start-up", "Work", "Tokens", "Tokens/s", ...(memory ? ["Peak memory"] : []), ""], rows, { className: "bars", rowClass: (i) => (i === rows.length - 1 ? "kept" : null) }));
}

function configuration() {
  const show = (value) => (value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const part = (name, values) => el("div", {}, el("h3", {}, name), table(["Setting", "Value"], Object.entries(values).map(([key, value]) => [key, show(value)])));
  const flat = Object.entries(report.config).filter(([, value]) => value === null || typeof value !== "object" || Array.isArray(value));
  const sections = Object.entries(report.config).filter(([, value]) => value !== null && typeof value === "object" && !Array.isArray(value));
  put("configuration", el("details", {}, el("summary", {}, `All settings, digest ${report.config_digest}`),
    el("div", { class: "config" }, part("run", Object.fromEntries(flat)), sections.map(([name, values]) => part(name, values)))));
}

function trees() {
  const some = explorer.iterations.length > 0;
  put("trees", some ? treeExplorer(explorer) : nothing("This run searched no trees."));
}

for (const draw of [headline, summary, accuracy, training, perplexity, pairs, trees, dropped, cost, configuration]) draw();
document.documentElement.dataset.ready = "yes";
