// The tree explorer: choose an iteration and a tree, read its example, open its nodes, follow the pairs it gave.

const [PARENT, TEXT, PRIOR, VISITS, VALUE, OUTCOME, CONFIDENCE, MARKS] = Array(8).keys();
const [TERMINAL, CORRECT, INJECTED] = [1, 2, 4];
const is = (node, mark) => (node[MARKS] & mark) !== 0;
const COLUMNS = [["Q", VALUE, "value of the step"], ["N", VISITS, "visits"], ["p", PRIOR, "prior"], ["O", OUTCOME, "outcome"], ["C", CONFIDENCE, "self-evaluation"]];

function treeExplorer(explorer) {
  const state = { iteration: explorer.iterations.length - 1, filter: "all", query: "", tree: 0 };
  const view = el("div", { id: "tree-view" });
  const iteration = el("select", { id: "tree-iteration", on: { change: () => go({ iteration: Number(iteration.value), tree: 0 }) } },
    explorer.iterations.map((part, i) => el("option", { value: i }, `Iteration ${part.iteration}`)));
  const filter = el("select", { id: "tree-filter", on: { change: () => go({ filter: filter.value, tree: 0 }) } });
  const query = el("input", { id: "tree-query", type: "search", placeholder: "id or words", on: { input: () => go({ query: query.value, tree: 0 }) } });
  const choice = el("select", { id: "tree-choice", on: { change: () => go({ tree: Number(choice.value) }) } });
  const back = el("button", { type: "button", on: { click: () => go({ tree: state.tree - 1 }) } }, "Previous");
  const next = el("button", { type: "button", on: { click: () => go({ tree: state.tree + 1 }) } }, "Next");
  const left = el("p", { class: "hint" });

  const artifact = (part) => `trees.jsonl of i${part.iteration}/generate (itoolctl artifacts get)`;

  function matches(tree) {
    if (state.filter === "pairs" && !tree.pairs.length) return false;
    if (state.filter.startsWith("stop:") && tree.stopped !== state.filter.slice(5)) return false;
    const words = state.query.trim().toLowerCase();
    if (!words) return true;
    const example = explorer.examples[tree.example_id];
    const text = [tree.example_id, ...(example ? example.messages.map((m) => m[1]) : [])].join(" ").toLowerCase();
    return text.includes(words);
  }

  function go(change) {
    Object.assign(state, change);
    const part = explorer.iterations[state.iteration];
    iteration.value = state.iteration;
    const reasons = [...new Set(part.trees.map((tree) => tree.stopped))].sort();
    const count = (test) => part.trees.filter(test).length;
    if (state.filter.startsWith("stop:") && !reasons.includes(state.filter.slice(5))) state.filter = "all";
    filter.replaceChildren(
      el("option", { value: "all" }, `All trees (${part.trees.length})`),
      el("option", { value: "pairs" }, `With pairs (${count((tree) => tree.pairs.length)})`),
      ...reasons.map((r) => el("option", { value: `stop:${r}` }, `Stopped: ${phrase(r)} (${count((tree) => tree.stopped === r)})`)));
    filter.value = state.filter;
    const found = part.trees.filter(matches);
    state.tree = Math.max(0, Math.min(state.tree, found.length - 1));
    choice.replaceChildren(...found.map((tree, i) =>
      el("option", { value: i }, `${tree.example_id} · ${phrase(tree.stopped)} · ${tree.pairs.length ? plural(tree.pairs.length, "pair") : "no pair"}`)));
    choice.value = state.tree;
    choice.disabled = !found.length;
    back.disabled = state.tree === 0;
    next.disabled = state.tree >= found.length - 1;
    left.textContent = part.trees_left_out
      ? `${plural(part.trees.length, "tree")} of this iteration are in this page; ${integer(part.trees_left_out)} more did not fit and are in ${artifact(part)}.`
      : `All ${plural(part.trees.length, "tree")} of this iteration are in this page.`;
    view.replaceChildren(...(found.length ? oneTree(found[state.tree], explorer, artifact(part)) : [el("p", { class: "note" }, "No tree matches. Choose another filter or clear the search.")]));
  }

  const labelled = (name, control, className) => el("label", { class: className }, name, control);
  go({});
  return [
    el("div", { class: "controls" }, labelled("Iteration", iteration), labelled("Show", filter), labelled("Search", query, "wide"), labelled("Tree", choice, "wide"), el("div", { class: "buttons" }, back, next)),
    left,
    view,
  ];
}

function oneTree(tree, explorer, artifact) {
  const example = explorer.examples[tree.example_id];
  const grid = treeGrid(tree);
  const pairs = tree.pairs.map((pair, i) => {
    const button = el("button", { type: "button", "aria-pressed": "false", on: { click: () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      grid.showPair(on ? pair : null);
    } } },
      el("span", {}, `Pair ${i + 1}`),
      el("span", {}, el("span", { class: "good-text" }, "chosen "), el("code", {}, stepText(tree.nodes[pair.chosen][TEXT])), el("span", { class: "ci" }, ` N ${pair.chosen_visits}`), pair.injected && el("span", { class: "ci" }, ", ground truth injected")),
      el("span", {}, el("span", { class: "bad-text" }, "rejected "), el("code", {}, stepText(tree.nodes[pair.rejected][TEXT])), el("span", { class: "ci" }, ` N ${pair.rejected_visits}`)),
      el("span", { class: "ci" }, `gap ${decimal(pair.gap)}`));
    return el("li", {}, button);
  });
  const list = el("ul", { class: "pair-list" }, pairs);
  return [
    exampleCard(tree, example, explorer.tools),
    tree.pairs.length > 0 && el("h3", {}, `${plural(tree.pairs.length, "preference pair")} from this tree`),
    tree.pairs.length > 0 && list,
    el("div", { class: "tree-tools" },
      el("span", { class: "hint" }, COLUMNS.map(([name, , what]) => `${name} ${what}`).join(" · ")),
      el("span", { class: "buttons" },
        el("button", { type: "button", id: "expand-all", on: { click: () => grid.expandAll(true) } }, "Expand all"),
        el("button", { type: "button", id: "collapse-all", on: { click: () => grid.expandAll(false) } }, "Collapse all"))),
    el("div", {},
      grid.root,
      tree.nodes_left_out > 0 && el("p", { class: "hint" }, `${plural(tree.nodes_left_out, "node")} with the fewest visits did not fit; the whole tree is in ${artifact}.`),
      grid.state),
  ].filter(Boolean);
}

function exampleCard(tree, example, allTools) {
  const row = (name, ...content) => [el("dt", {}, name), el("dd", {}, ...content)];
  const search = `${phrase(tree.stopped)}; ${plural(tree.simulations, "simulation")}, ${tree.correct_samples} of ${plural(tree.samples, "sample")} right, ${plural(tree.sampled_tokens, "sampled token")}`;
  const tools = (example ? example.tools : []).map((place) => allTools[place]).map((tool) =>
    el("details", {}, el("summary", {}, el("code", {}, tool.name), " ", el("span", { class: "role" }, tool.description)), el("pre", {}, JSON.stringify(tool.parameters, null, 2))));
  return el("div", { class: "example" }, el("dl", {},
    row("Example", el("code", {}, tree.example_id), example && example.difficulty ? ` (${example.difficulty})` : ""),
    example && row("Query", example.messages.map(([role, text], i) => [i ? "\n" : "", example.messages.length > 1 ? el("span", { class: "role" }, `${role}: `) : "", text])),
    example && row("Ground truth", el("code", {}, example.answer)),
    example && tools.length > 0 && row(plural(tools.length, "tool"), tools),
    row("Search ended", search)));
}

const stepText = (text) => (text === "" ? "(end)" : text.replaceAll("\n", "⏎"));

// A flat list of rows with levels (ARIA treegrid): arrows move and open, Home and End jump, Enter and a click toggle.
function treeGrid(tree) {
  const { nodes } = tree;
  const children = nodes.map(() => []);
  nodes.forEach((node, i) => { if (node[PARENT] !== null) children[node[PARENT]].push(i); });
  children.forEach((list) => list.sort((a, b) => nodes[b][VISITS] - nodes[a][VISITS] || a - b));
  const below = nodes.map(() => [0, 0]);
  for (let i = nodes.length - 1; i >= 0; i -= 1) {
    if (is(nodes[i], TERMINAL)) below[i][is(nodes[i], CORRECT) ? 0 : 1] += 1;
    const parent = nodes[i][PARENT];
    if (parent !== null) { below[parent][0] += below[i][0]; below[parent][1] += below[i][1]; }
  }
  const roles = { chosen: new Set(tree.pairs.map((p) => p.chosen)), rejected: new Set(tree.pairs.map((p) => p.rejected)) };
  const open = new Set([0]);
  if (children[0].length === 1) open.add(children[0][0]);
  let current = 0;
  let touched = false;
  let pair = null;
  const reveal = (i) => { for (let p = nodes[i][PARENT]; p !== null; p = nodes[p][PARENT]) open.add(p); };
  for (const p of tree.pairs) { reveal(p.chosen); reveal(p.rejected); }

  const body = el("div", { role: "rowgroup" });
  const head = el("div", { role: "row", class: "head" }, el("div", { role: "columnheader", class: "step" }, "Step"),
    COLUMNS.map(([name, , what]) => el("div", { role: "columnheader", title: what }, name)));
  const root = el("div", { role: "treegrid", class: "treegrid", "aria-label": `Search tree of ${tree.example_id}`, on: { keydown: keys } }, el("div", { role: "rowgroup" }, head), body);
  const state = el("div", { class: "state", id: "tree-state" });

  // A node and all that is open below it, as [node, depth].
  function visible(from = 0, fromDepth = 0) {
    const rows = [];
    const stack = [[from, fromDepth]];
    while (stack.length) {
      const [i, depth] = stack.pop();
      rows.push([i, depth]);
      if (open.has(i)) for (const child of [...children[i]].reverse()) stack.push([child, depth + 1]);
    }
    return rows;
  }

  function tags(i) {
    const node = nodes[i];
    return [
      roles.chosen.has(i) && el("span", { class: "tag good" }, "chosen"),
      roles.rejected.has(i) && el("span", { class: "tag bad" }, "rejected"),
      is(node, INJECTED) && el("span", { class: "tag" }, "ground truth"),
      is(node, TERMINAL) && el("span", { class: is(node, CORRECT) ? "good-text" : "bad-text" }, is(node, CORRECT) ? "✓ correct" : "✗ wrong"),
      !is(node, TERMINAL) && sum(below[i]) > 0 && el("span", { class: "below" }, `${below[i][0]} ✓ ${below[i][1]} ✗`),
    ];
  }

  function row([i, depth]) {
    const node = nodes[i];
    const inner = children[i].length > 0;
    const now = pair && (pair.chosen === i || pair.rejected === i);
    const names = ["node", roles.chosen.has(i) && "chosen", roles.rejected.has(i) && "rejected", now && "now"].filter(Boolean).join(" ");
    return el("div", {
      role: "row", class: names, "data-node": i, "aria-level": depth + 1, "aria-expanded": inner ? String(open.has(i)) : null,
      "aria-selected": String(touched && i === current), tabindex: i === current ? "0" : "-1",
      on: { click: () => { if (inner) toggle(i); select(i); } },
    },
      el("div", { role: "gridcell", class: "step", vars: { "--depth": depth } },
        el("span", { class: "twist", "aria-hidden": "true" }, inner ? (open.has(i) ? "▾" : "▸") : ""),
        el("code", {}, i === 0 ? "query" : stepText(node[TEXT])), tags(i)),
      COLUMNS.map(([name, at]) => el("div", { role: "gridcell", "data-label": name }, at === VISITS ? integer(node[at]) : i === 0 && (at === PRIOR || at === VALUE) ? "–" : decimal(node[at]))));
  }

  const rowOf = (i) => body.querySelector(`[data-node="${i}"]`);
  const level = (element) => Number(element.getAttribute("aria-level"));

  function toggle(i) {
    if (!open.delete(i)) open.add(i);
    const at = rowOf(i);
    while (at.nextElementSibling && level(at.nextElementSibling) > level(at)) at.nextElementSibling.remove();
    at.replaceWith(...visible(i, level(at) - 1).map(row));
  }

  function paint() {
    body.replaceChildren(...visible().map(row));
    respond();
  }

  // The other rows stay as they are: what was in sight stays where it was.
  function select(i) {
    const before = rowOf(current);
    if (before) fill(before, { "aria-selected": "false", tabindex: "-1" }, []);
    current = i;
    touched = true;
    const at = fill(rowOf(i), { "aria-selected": "true", tabindex: "0" }, []);
    respond();
    at.focus({ preventScroll: true });
    reach(4);
  }

  // Rows that were never in sight have a guessed height, and the frames after a jump correct it.
  function reach(frames) {
    rowOf(current)?.scrollIntoView({ block: "nearest" });
    if (frames > 0) requestAnimationFrame(() => reach(frames - 1));
  }

  function respond() {
    const path = [];
    for (let i = current; i !== null; i = nodes[i][PARENT]) path.unshift(nodes[i][TEXT]);
    state.replaceChildren(el("span", { class: "hint" }, current === 0 ? "Select a step to read the response up to it." : "Response up to the selected step"), current === 0 ? "" : el("pre", {}, path.join("")));
    state.querySelector("pre")?.scrollTo(0, state.scrollHeight);
    root.style.setProperty("--state-height", `${state.offsetHeight}px`);
  }

  function keys(event) {
    const order = visible().map(([i]) => i);
    const at = order.indexOf(current);
    const inner = children[current].length > 0;
    let to = current;
    if (event.key === "ArrowDown") to = order[Math.min(at + 1, order.length - 1)];
    else if (event.key === "ArrowUp") to = order[Math.max(at - 1, 0)];
    else if (event.key === "Home") [to] = order;
    else if (event.key === "End") to = order[order.length - 1];
    else if (event.key === "ArrowRight" && inner) { if (open.has(current)) [to] = children[current]; else toggle(current); }
    else if (event.key === "ArrowLeft") { if (inner && open.has(current)) toggle(current); else to = nodes[current][PARENT] ?? current; }
    else if (event.key === "Enter" || event.key === " ") { if (inner) toggle(current); }
    else return;
    event.preventDefault();
    select(to);
  }

  paint();
  return {
    root,
    state,
    expandAll(all) {
      open.clear();
      if (all) nodes.forEach((_, i) => { if (children[i].length) open.add(i); });
      else current = 0;
      paint();
    },
    showPair(chosen) {
      pair = chosen;
      if (pair) { reveal(pair.chosen); reveal(pair.rejected); current = pair.parent; }
      paint();
      if (pair) body.querySelector(".node.now")?.scrollIntoView({ block: "nearest" });
    },
  };
}
