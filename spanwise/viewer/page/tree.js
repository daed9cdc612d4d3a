"use strict";
// The tree page: the trees of a step, one of them as a picture, one turn in full.

const Trees = (() => {
  const FONT_SIZE = 11.5;
  const COLOURS = [
    ["advantage", "advantage"], ["value", "value"], ["return", "mean return from here"],
    ["entropy", "entropy, nats a token"], ["ratio", "policy ratio"], ["clipped", "share of tokens clipped"],
  ];

  let state;
  let run;
  let list;
  let tree;
  let toGo;
  let picture;

  async function show(main, [runId, step, number], query) {
    run = Data.runs[Number(runId ?? 0)];
    if (!run) throw new Error(`there is no run ${runId}`);
    const wanted = step === undefined ? run.steps[0] : Number(step);
    if (wanted === undefined) {
      main.replaceChildren(runChooser(), h("p", { class: "empty" }, "No trees yet: this run has not kept any."));
      return;
    }
    state = {
      step: wanted, number: number === undefined ? null : Number(number),
      colour: query.get("colour") ?? "advantage", node: query.get("node"),
      row: query.has("row") ? Number(query.get("row")) : null,
      order: query.get("order") ?? "mixed", folded: new Set((query.get("folded") ?? "").split(",").filter(Boolean)),
    };
    list = await Data.trees(run.id, state.step);
    state.number ??= sorted()[0]?.number ?? 0;
    main.replaceChildren(
      h("div", { class: "three" },
        h("aside", { class: "list", "aria-label": "Trees of the step" }, stepChooser(), h("ol", { id: "trees" })),
        h("section", { class: "centre" }, h("div", { id: "tree-head" }), h("div", { id: "picture" })),
        h("aside", { id: "turn", "aria-label": "The turn in full" })));
    drawList();
    tree = await Data.tree(run.id, state.step, state.number);
    toGo = Credit.returnsToGo(tree.nodes);
    if (!state.node || !tree.node(state.node)) state.node = strongest().name;
    drawHead();
    drawPicture();
    drawTurn();
    scrollTo(state.node);
    remember();
  }

  function remember() {
    const query = new URLSearchParams();
    if (state.colour !== "advantage") query.set("colour", state.colour);
    if (state.order !== "mixed") query.set("order", state.order);
    if (state.row !== null) query.set("row", state.row);
    if (state.node) query.set("node", state.node);
    if (state.folded.size) query.set("folded", [...state.folded].join(","));
    App.remember(`#/tree/${run.id}/${state.step}/${state.number}`, query);
  }

  // The turn to begin with: the one with the largest advantage, of those nearest the root.
  function strongest() {
    const turns = tree.nodes.slice(1);
    return turns.reduce((best, node) => (Math.abs(node.advantage ?? 0) > Math.abs(best.advantage ?? 0) + 1e-4 ? node : best), turns[0] ?? tree.root);
  }

  function runChooser() {
    if (Data.runs.length < 2) return null;
    return select("Run", Data.runs.map((one) => [one.id, one.name]), run.id, (id) => App.go(`#/tree/${id}`), "tree-run");
  }

  function stepChooser() {
    const at = run.steps.indexOf(state.step);
    const go = (index) => App.go(`#/tree/${run.id}/${run.steps[Math.min(Math.max(index, 0), run.steps.length - 1)]}`);
    const range = h("input", { type: "range", id: "step", min: 0, max: run.steps.length - 1, value: at, "aria-label": "Step", "aria-valuetext": `step ${state.step}` });
    const readout = h("output", {}, `${state.step}`);
    range.addEventListener("input", () => (readout.textContent = `${run.steps[Number(range.value)]}`));
    range.addEventListener("change", () => go(Number(range.value)));
    return h("div", { class: "steps" }, runChooser(),
      h("div", { class: "row" }, h("span", {}, "Step ", readout, h("span", { class: "soft" }, ` of ${run.steps[run.steps.length - 1]}`)), h("span", { class: "filler" }),
        h("button", { click: () => go(at - 1), "aria-label": "Step before", disabled: at <= 0 }, "‹"),
        h("button", { click: () => go(at + 1), "aria-label": "Step after", disabled: at >= run.steps.length - 1 }, "›")),
      range,
      select("Order", [["mixed", "most mixed first"], ["credit", "largest advantage first"], ["size", "most leaves first"], ["file", "as sampled"]], state.order, (v) => {
        state.order = v;
        drawList();
        remember();
      }, "order"));
  }

  function sorted() {
    const all = list.map((one, number) => ({ tree: one, number }));
    const by = {
      mixed: ({ tree: one }) => -variance(one.returns.filter((r) => r !== null)), credit: ({ tree: one }) => -one.largest_advantage,
      size: ({ tree: one }) => -one.returns.length, file: ({ number }) => number,
    }[state.order];
    return all.sort((a, b) => by(a) - by(b) || a.number - b.number);
  }

  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / Math.max(values.length, 1);
  const variance = (values) => mean(values.map((v) => (v - mean(values)) ** 2));

  function drawList() {
    document.getElementById("trees").replaceChildren(...sorted().map(({ tree: one, number }) => {
      const current = number === state.number;
      return h("li", {}, h("button", {
        "aria-current": current ? "true" : null, "data-tree": number,
        click: () => App.go(`#/tree/${run.id}/${state.step}/${number}${state.colour === "advantage" ? "" : `?colour=${state.colour}`}`),
      }, h("span", { class: "number" }, String(number)), h("span", { class: "question model-text" }, Text.visible(one.question) || "(no question)"), tally(one)));
    }));
  }

  // How the leaves of a tree ended: how many succeeded, or else their mean return.
  function summed({ returns, successes }) {
    const right = successes.filter((one) => one === true).length;
    const scored = returns.filter((one) => one !== null);
    return {
      leaves: returns.length, right, unscored: returns.length - scored.length, known: successes.some((one) => one !== null),
      mean: scored.length ? Scales.number(mean(scored)) : "–",
    };
  }

  function tally(one) {
    const { leaves, right, unscored, known, mean } = summed(one);
    if (!known) return h("span", { class: "tally" }, `return ${mean}, ${leaves} ${leaves > 1 ? "leaves" : "leaf"}`);
    const width = 56;
    const share = (count) => (width * count) / leaves;
    return h("span", { class: "tally", title: `${right} of ${leaves} leaves succeeded` },
      s("svg", { width, height: 6, "aria-hidden": true },
        s("rect", { width, height: 6, rx: 3, fill: Scales.ink("faint") }),
        s("rect", { width: share(right), height: 6, rx: 3, fill: Scales.ink("accent") }),
        unscored ? s("rect", { x: width - share(unscored), width: share(unscored), height: 6, rx: 3, fill: Scales.ink("alarm") }) : null),
      ` ${right}/${leaves}`);
  }

  // --- the figures a turn can be coloured by

  function figure(node, name) {
    if (!node.parent) return null;
    if (name === "return") return toGo.get(node).from;
    if (name === "ratio") return Turn.mean(node.ratio);
    if (name === "clipped") return Turn.clippedShare(node, run);
    return node[name];
  }

  function palette() {
    const figures = tree.nodes.map((node) => figure(node, state.colour)).filter((v) => v !== null);
    const signed = ["advantage", "value", "ratio"].includes(state.colour) || figures.some((v) => v < 0);
    const centre = state.colour === "ratio" ? 1 : 0;
    const limit = Math.max(...figures.map((v) => Math.abs(v - centre)), state.colour === "clipped" ? 1 : 1e-6);
    const colour = (value) => (signed ? Scales.signed(value - centre, limit) : Scales.plain(value, limit));
    return { colour, limit, signed, centre };
  }

  function colourScale({ colour, limit, signed, centre }) {
    const width = 120;
    const [low, high] = signed ? [centre - limit, centre + limit] : [0, limit];
    const cells = Array.from({ length: 24 }, (_, i) => s("rect", {
      x: (i * width) / 24, width: width / 24 + 0.5, height: 10, fill: colour(low + ((high - low) * (i + 0.5)) / 24),
    }));
    return h("span", { class: "scale" }, Scales.number(low, 2), s("svg", { width, height: 10, "aria-hidden": true }, cells), Scales.number(high, 2));
  }

  // --- the head of the picture

  function drawHead() {
    const available = COLOURS.filter(([name]) => tree.nodes.some((node) => figure(node, name) !== null));
    if (!available.some(([name]) => name === state.colour)) state.colour = available[0]?.[0] ?? "return";
    const fit = fitRow();
    const size = slider("Row", { min: Math.floor(Math.min(fit, 6)), max: 40, step: 1, value: Math.round(rowHeight()), id: "row", shown: (v) => `${v} px` }, (v) => {
      state.row = v;
      drawPicture();
      remember();
    });
    const { leaves, right, known, mean } = summed(list[state.number]);
    const rounds = new Set(tree.nodes.map((node) => node.expansion?.round).filter(Boolean));
    document.getElementById("tree-head").replaceChildren(h("div", {},
      h("p", { class: "question" }, h("span", { class: "soft" }, `tree ${state.number} `), h("b", { class: "model-text" }, Text.visible(tree.task.question)),
        Turn.answers(tree.task)),
      h("div", { class: "controls" },
        select("Colour", available, state.colour, (v) => {
          state.colour = v;
          drawHead();
          drawPicture();
          drawTurn();
          remember();
        }, "colour"),
        colourScale(palette()),
        size,
        h("button", { id: "fit", click: () => { state.row = fit; drawHead(); drawPicture(); remember(); } }, "Fit")),
      h("p", { class: "soft small tree-line" }, `${leaves} ${leaves > 1 ? "leaves" : "leaf"}, ${known ? `${right} succeeded` : `mean return ${mean}`}, ${tree.nodes.length - 1} turns; ` +
        (rounds.size ? "ring: sampled by search, in that round; " : "") + "edge width: leaves below.",
        h("span", { class: "filler" }), Charts.savers(() => picture, () => `tree-${state.step}-${state.number}`))));
  }

  // --- the picture

  const area = () => document.getElementById("picture").clientHeight || 500;
  const fitRow = () => Math.max(1, Math.min(34, Math.floor((area() - 16) / Layout.tree(tree.root, state.folded).rows)));
  const rowHeight = () => state.row ?? Math.max(fitRow(), 19);

  function drawPicture() {
    const box = document.getElementById("picture");
    const { placed, rows, depth } = Layout.tree(tree.root, state.folded);
    const row = rowHeight();
    const root = 26;
    const tail = 14 + 7 * Math.max(6, ...tree.leaves.map((leaf) => ending(leaf).length));
    const gap = tree.nodes.some(paidOnTheWay) ? 32 : 20;
    const column = Math.max(128 + gap, Math.floor((box.clientWidth - root - tail - 12) / Math.max(depth, 1)));
    const height = Math.max(rows * row + 12, 40);
    const width = root + depth * column + tail;
    const size = Math.min(FONT_SIZE, row * 0.66);
    const bar = Math.max(Math.min(row - 4, 24), row * 0.6);
    const shades = palette();
    const svg = s("svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "tree", "aria-label": `Search tree: ${tree.leaves.length} leaves`,
      "font-family": Charts.FONT, "font-size": size.toFixed(1),
    });
    const edges = s("g", { fill: "none", "aria-hidden": true });
    const nodes = s("g", {});
    const left = (p) => (p.column === 0 ? 4 : root + (p.column - 1) * column + gap);
    const wide = (p) => (p.column === 0 ? 18 : column - gap);
    const y = (p) => 6 + (p.row + 0.5) * row;
    const at = new Map(placed.map((p) => [p.node, p]));
    for (const p of placed) {
      for (const child of p.shown) {
        const [x0, x1, y0, y1] = [left(p) + wide(p), left(child), y(p), y(child)];
        const bend = (x1 - x0) / 2;
        edges.append(s("path", {
          d: `M${x0} ${y0} C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`,
          stroke: Scales.ink("edge"), "stroke-width": Math.max(0.7, Math.min(bar * 0.8, 12) * (child.node.leaves / tree.root.leaves)).toFixed(2),
        }));
      }
    }
    const elements = new Map();
    const draw = (p) => {
      const tall = Math.max(bar, Math.min(24, p.shown.length ? p.node.leaves * row * 0.5 : 0));
      const element = drawNode(p, { x: left(p), y: y(p), width: wide(p), bar: tall, size, row, shades, ...marked() });
      elements.get(p.node)?.replaceWith(element);
      elements.set(p.node, element);
      return element;
    };
    nodes.append(...placed.map(draw));
    svg.append(edges, nodes);
    svg.addEventListener("keydown", keydown);
    const focused = picture && document.activeElement && picture.contains(document.activeElement);
    picture = svg;
    box.replaceChildren(svg);
    picture.at = at;
    picture.redraw = (node) => at.has(node) && draw(at.get(node));
    picture.element = (node) => elements.get(node);
    if (focused) focusNode();
  }

  // The turn that is looked at, and the one that search chose before it sampled that turn.
  function marked() {
    const chosen = tree.node(state.node);
    return { chosen, source: chosen?.expansion ? tree.node(Data.nameOf(chosen.expansion.of)) : null };
  }

  function drawNode(p, { x, y, width, bar, size, row, shades, chosen, source }) {
    const { node } = p;
    const value = figure(node, state.colour);
    const fill = value === null ? Scales.ink("faint") : shades.colour(value);
    const isChosen = node === chosen;
    const stroke = isChosen ? Scales.ink("ink") : node === source ? Scales.ink("mark") : node.failure ? Scales.ink("alarm") : Scales.ink("edge");
    const group = s("g", {
      role: "treeitem", "data-node": node.name, tabindex: isChosen ? 0 : -1, "aria-level": p.column + 1, "aria-selected": isChosen,
      "aria-expanded": node.children.length ? !state.folded.has(node.name) : null, "aria-label": spoken(node), cursor: "pointer",
      click: () => choose(node), dblclick: () => (node.children.length ? fold(node) : read(node)),
    });
    group.append(s("title", {}, spoken(node)), s("rect", {
      x, y: y - bar / 2, width, height: bar, rx: Math.min(4, bar / 3), fill, stroke,
      "stroke-width": isChosen ? 2.5 : node === source ? 2 : row < 8 ? 0.3 : 1, "stroke-dasharray": node.failure ? "4 3" : null,
    }));
    if (row >= 9 && node.parent) {
      const ink = Scales.textOn(fill);
      const font = `${size}px ${Charts.FONT}`;
      const shown = value === null ? "" : ["advantage", "value"].includes(state.colour) ? Scales.withSign(value) : Scales.number(value, 2);
      const indent = node.expansion ? bar / 2 + 4 : 0;
      const right = x + width - (paidOnTheWay(node) ? 15 : 6);
      const room = right - x - 8 - indent - (shown ? shown.length * size * 0.58 + 6 : 0);
      group.append(
        s("text", { x: x + 6 + indent, y: y + size * 0.36, fill: ink, direction: "ltr" }, Text.fitted(Turn.label(node), room, font)),
        s("text", { x: right, y: y + size * 0.36, fill: ink, "text-anchor": "end", opacity: 0.85 }, shown));
      if (paidOnTheWay(node)) group.append(payment(node.reward, x + width - 11, y, size, bar));
    }
    if (node.expansion) {
      const radius = Math.min(8, bar / 2 - 0.5);
      group.append(s("circle", { cx: x, cy: y, r: Math.max(radius, 1.5), fill: Scales.ink("paper"), stroke: Scales.ink("mark"), "stroke-width": row < 9 ? 1 : 1.8 }));
      if (row >= 12) group.append(s("text", { x, y: y + size * 0.33, "text-anchor": "middle", "font-size": size * 0.85, fill: Scales.ink("mark"), "font-weight": 600 }, String(node.expansion.round ?? "?")));
    }
    if (!node.children.length && row >= 9) {
      const good = node.success ?? node.return > 0;
      const ink = Scales.ink(node.return === null ? "alarm" : good ? "accent" : "soft");
      group.append(s("text", { x: x + width + 8, y: y + size * 0.36, fill: ink, "font-weight": good ? 700 : 400 }, ending(node)));
    }
    if (state.folded.has(node.name) && node.children.length) {
      group.append(s("text", { x: x + width + (paidOnTheWay(node) ? 32 : 8), y: y + size * 0.36, fill: Scales.ink("soft") }, `▸ ${node.leaves}`));
    }
    return group;
  }

  const paidOnTheWay = (node) => node.children.length > 0 && Boolean(node.reward);
  const ending = (leaf) => Turn.ending(leaf).slice(0, 16);

  // What a turn was paid, as a badge at its end.
  function payment(reward, x, y, size, bar) {
    const text = Scales.payment(reward);
    const [width, height] = [text.length * size * 0.57 + 8, Math.min(bar, size + 4)];
    const ink = Scales.ink(reward > 0 ? "accent" : "alarm");
    return s("g", { class: "payment" },
      s("rect", { x, y: y - height / 2, width, height, rx: height / 2, fill: Scales.ink("paper"), stroke: ink }),
      s("text", { x: x + width / 2, y: y + size * 0.34, "text-anchor": "middle", "font-size": (size * 0.92).toFixed(1), "font-weight": 700, fill: ink }, text));
  }

  function spoken(node) {
    const parts = [node.parent ? `turn ${node.name}` : "prompt", Turn.label(node).slice(0, 80)];
    if (node.advantage !== null && node.parent) parts.push(`advantage ${Scales.withSign(node.advantage)}`);
    if (node.expansion) parts.push(`sampled in round ${node.expansion.round}`);
    if (node.failure) parts.push(`failed: ${Text.visible(node.failure.kind)}`);
    if (node.reward !== null) parts.push(`reward ${Scales.number(node.reward)}`);
    if (node.return !== null) parts.push(`return ${Scales.number(node.return)}`);
    return parts.join(", ");
  }

  function choose(node) {
    const before = marked();
    state.node = node.name;
    const changed = new Set([...Object.values(before), ...Object.values(marked())]);
    for (const one of changed) if (one) picture.redraw(one);
    drawTurn();
    focusNode();
    remember();
    App.announce(spoken(node));
  }

  function focusNode() {
    picture.element(tree.node(state.node))?.focus({ preventScroll: true });
    scrollTo(state.node);
  }

  function scrollTo(name) {
    const p = picture.at.get(tree.node(name));
    if (!p) return;
    const box = document.getElementById("picture");
    const y = 6 + (p.row + 0.5) * rowHeight();
    if (y < box.scrollTop + 20 || y > box.scrollTop + box.clientHeight - 20) box.scrollTop = y - box.clientHeight / 2;
  }

  function fold(node) {
    if (state.folded.has(node.name)) state.folded.delete(node.name);
    else state.folded.add(node.name);
    drawPicture();
    drawHead();
    focusNode();
    remember();
  }

  const read = (node) => App.go(`#/tokens/${run.id}/${state.step}/${state.number}/${leafBelow(node).name}`);

  function leafBelow(node) {
    while (node.children.length) node = node.children[0];
    return node;
  }

  function keydown(event) {
    const node = tree.node(state.node);
    const p = picture.at.get(node);
    if (!p) return;
    const level = [...picture.at.values()].filter((other) => other.column === p.column).sort((a, b) => a.row - b.row);
    const beside = (by) => level[level.indexOf(p) + by]?.node;
    const moves = {
      ArrowLeft: () => node.parent, ArrowRight: () => (state.folded.has(node.name) ? null : node.children[0]),
      ArrowUp: () => beside(-1), ArrowDown: () => beside(1), Home: () => tree.root,
    };
    if (moves[event.key]) {
      const next = moves[event.key]();
      if (next) choose(next);
    } else if (event.key === "Enter") {
      if (node.parent) read(node);
    } else if (event.key === " ") {
      if (node.children.length) fold(node);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  function drawTurn() {
    const box = document.getElementById("turn");
    box.replaceChildren(Turn.inFull(tree.node(state.node), { run, tree, toGo, choose, read }));
  }

  function asText() {
    if (!tree) return "";
    const lines = [`step ${state.step}, tree ${state.number}: ${Text.visible(tree.task.question)}`];
    for (const node of tree.nodes) {
      const figures = node.parent ? [`H ${Scales.number(node.entropy)}`, `A ${Scales.withSign(node.advantage)}`] : [];
      if (node.reward !== null) figures.push(`reward ${Scales.number(node.reward)}`);
      if (node.return !== null) figures.push(`return ${Scales.number(node.return)}`);
      if (node.expansion) figures.push(`round ${node.expansion.round}, beside ${Data.nameOf(node.expansion.of)}`);
      lines.push(`${"  ".repeat(node.path.length)}${node.name} ${node.parent ? Turn.label(node) : ""}  ${figures.join("  ")}`.trimEnd());
    }
    return lines.join("\n") + "\n";
  }

  function key(event) {
    if (!state) return false;
    const at = run.steps.indexOf(state.step);
    const order = sorted().map(({ number }) => number);
    const place = order.indexOf(state.number);
    const step = { "[": at - 1, "]": at + 1 }[event.key];
    const other = { ",": place - 1, ".": place + 1 }[event.key];
    if (step !== undefined && run.steps[step] !== undefined) App.go(`#/tree/${run.id}/${run.steps[step]}`);
    else if (other !== undefined && order[other] !== undefined) App.go(`#/tree/${run.id}/${state.step}/${order[other]}`);
    else if (event.key.startsWith("Arrow") && picture && !document.activeElement?.closest?.("input, select, [data-node]")) focusNode();
    else return false;
    return true;
  }

  function update() {
    const range = document.getElementById("step");
    if (range && run && Number(range.max) !== run.steps.length - 1) {
      range.max = run.steps.length - 1;
      App.announce(`${run.steps.length} steps are there now`);
    } else if (!range) {
      App.route();
    }
  }

  function themed() {
    if (!tree) return;
    drawList();
    drawHead();
    drawPicture();
    drawTurn();
  }

  return { show, update, themed, asText, key };
})();
