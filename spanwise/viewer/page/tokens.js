"use strict";
// The token page: one branch as text with its spans, and what the estimators say of it.

const Tokens = (() => {
  const ESTIMATORS = [
    ["gae", "GAE(λ)", 0, null], ["sae", "SAE(λ, p)", 1, null], ["monte_carlo", "Monte Carlo", 2, "5 3"], ["recorded", "recorded", 3, null],
  ];

  let state;
  let run;
  let tree;
  let leaf;
  let turns; // nodes of the branch, root first
  let tokens; // the model's tokens in order: {node, t, piece, logprob, value, ...}
  let credit;
  let chart;

  async function show(main, [runId, step, number, name], query) {
    run = Data.runs[Number(runId ?? 0)];
    if (!run) throw new Error(`there is no run ${runId}`);
    if (!run.steps.length) {
      main.replaceChildren(h("p", { class: "empty" }, "No trees yet: this run has not kept any."));
      return;
    }
    const recorded = run.config.config.advantage;
    const spans = recorded.spans?.class === "LowProbability" ? recorded.spans : { threshold: 0.2, side: "start", logprobs: "engine" };
    state = {
      step: step === undefined ? run.steps[0] : Number(step), number: Number(number ?? 0),
      tint: query.get("tint") ?? "probability",
      lam: Number(query.get("lam") ?? recorded.lam ?? 0.95),
      gamma: recorded.gamma ?? 1,
      threshold: Number(query.get("p") ?? spans.threshold),
      side: query.get("side") ?? spans.side,
      logprobs: `${spans.logprobs ?? "engine"}_logprobs`,
      at: query.has("at") ? Number(query.get("at")) : null,
    };
    tree = await Data.tree(run.id, state.step, state.number);
    leaf = (name && tree.node(name)) || [...tree.leaves].sort((a, b) => b.path.length - a.path.length)[0];
    if (!leaf) {
      main.replaceChildren(h("p", { class: "empty" }, "This tree has no finished branch."));
      return;
    }
    while (leaf.children.length) leaf = leaf.children[0];
    collect();
    main.replaceChildren(
      h("div", { id: "branch-head" }),
      h("div", { class: "two" },
        h("section", { class: "reading" }, h("div", { id: "branch" })),
        h("section", { class: "estimates" }, h("div", { id: "token" }), h("div", { id: "estimators" }), h("div", { id: "by-turn" }))));
    drawHead();
    recompute();
    remember();
  }

  function remember() {
    const query = new URLSearchParams();
    if (state.tint !== "probability") query.set("tint", state.tint);
    query.set("lam", state.lam);
    query.set("p", state.threshold);
    query.set("side", state.side);
    if (state.at !== null) query.set("at", state.at);
    App.remember(`#/tokens/${run.id}/${state.step}/${state.number}/${leaf.name}`, query);
  }

  function collect() {
    turns = [];
    for (let node = leaf; node; node = node.parent) turns.unshift(node);
    const toGo = Credit.returnsToGo(tree.nodes);
    tokens = turns.flatMap((node) => node.tokens.map((id, t) => ({
      node, t, piece: node.pieces?.[t] ?? `#${id} `,
      logprob: node.engine_logprobs[t], decides: node[state.logprobs][t],
      entropy: node.entropies?.[t] ?? null, ratio: node.ratio?.[t] ?? null,
      value: node.values?.[t] ?? null, advantage: node.advantages?.[t] ?? node.advantage,
      estimate: toGo.get(node.parent).after,
    })));
    tokens.hasValues = tokens.length > 0 && tokens.every((token) => token.value !== null);
    tokens.hasEstimates = tokens.length > 0 && tokens.every((token) => token.estimate !== null);
  }

  const valueOf = (token) => (tokens.hasValues ? token.value : token.estimate);

  function recompute() {
    const spans = Credit.lowProbability(tokens.map((token) => token.decides), state.threshold, state.side);
    credit = { spans, recorded: tokens.map((token) => token.advantage) };
    if (leaf.return !== null && (tokens.hasValues || tokens.hasEstimates)) {
      const [rewards, values] = [Credit.tokenRewards(turns), tokens.map(valueOf)];
      const { gamma, lam } = state;
      credit.gae = Credit.spanAdvantages(rewards, values, Credit.byToken(values.length), { gamma, lam });
      credit.sae = Credit.spanAdvantages(rewards, values, spans, { gamma, lam });
      credit.monte_carlo = Credit.spanAdvantages(rewards, values, Credit.whole(values.length), { gamma, lam: 1 });
    }
    drawSegments();
    drawBranch();
    drawChart();
    drawByTurn();
    drawToken();
  }

  // --- head

  function drawHead() {
    const leaves = tree.leaves;
    const at = leaves.indexOf(leaf);
    const go = (index) => leaves[index] && App.go(`#/tokens/${run.id}/${state.step}/${state.number}/${leaves[index].name}`);
    const change = (name) => (value) => {
      state[name] = value;
      recompute();
      remember();
    };
    const tints = [
      ["probability", "probability", true],
      ["entropy", "entropy", tokens.some((token) => token.entropy !== null)],
      ["value", tokens.hasValues ? "value" : "value (mean return in the tree)", tokens.hasValues || tokens.hasEstimates],
      ["recorded", "advantage, recorded", tokens.some((token) => token.advantage !== null)],
      ["gae", "advantage, GAE", leaf.return !== null], ["sae", "advantage, SAE", leaf.return !== null],
      ["monte_carlo", "advantage, Monte Carlo", leaf.return !== null],
      ["ratio", "policy ratio", tokens.some((token) => token.ratio !== null)],
    ].filter(([, , there]) => there);
    if (!tints.some(([name]) => name === state.tint)) state.tint = "probability";
    document.getElementById("branch-head").replaceChildren(h("div", {},
      h("p", { class: "question" },
        h("a", { href: `#/tree/${run.id}/${state.step}/${state.number}?node=${leaf.name}` }, `step ${state.step}, tree ${state.number}`), " ",
        h("b", { class: "model-text" }, Text.visible(tree.task.question)), Turn.answers(tree.task)),
      h("div", { class: "controls" },
        h("button", { click: () => go(at - 1), disabled: at <= 0, "aria-label": "Branch before" }, "‹"),
        select("Branch", leaves.map((node, index) => [index, `${node.name}  ${Turn.ending(node)}`]), at, (index) => go(Number(index)), "leaf"),
        h("button", { click: () => go(at + 1), disabled: at >= leaves.length - 1, "aria-label": "Branch after" }, "›"),
        select("Tint", tints, state.tint, change("tint"), "tint"),
        slider("λ", { min: 0, max: 1, step: 0.01, value: state.lam, id: "lam", shown: (v) => v.toFixed(2) }, change("lam")),
        slider("p", { min: 0, max: 1, step: 0.01, value: state.threshold, id: "threshold", shown: (v) => v.toFixed(2) }, change("threshold")),
        select("Unlikely token", [["start", "opens a segment"], ["end", "closes a segment"]], state.side, change("side"), "side")),
      h("p", { class: "soft small", id: "segments" })));
  }

  function drawSegments() {
    const { count, meanLength } = Credit.spanStatistics(credit.spans);
    const unlikely = tokens.filter((token) => Math.exp(token.decides) < state.threshold).length;
    document.getElementById("segments").textContent =
      `${tokens.length} model tokens in ${count} ${count === 1 ? "segment" : `segments of ${Scales.number(meanLength)} on average`}; ` +
      `${unlikely} less likely than p = ${state.threshold.toFixed(2)}. A bar before a token opens a segment.`;
  }

  // --- the text

  function drawBranch() {
    const held = document.activeElement?.dataset?.token;
    const box = document.getElementById("branch");
    const colour = tinter();
    let index = 0;
    const parts = [];
    for (const node of turns) {
      if (node.tokens.length || node.parent) {
        const block = h("div", { class: "said model-text", role: "group", "aria-label": `turn ${node.name}, the model` });
        for (let t = 0; t < node.tokens.length; t++) block.append(tokenElement(index++, colour));
        if (node.reward) block.append(" ", h("span", { class: `payment${node.reward < 0 ? " loss" : ""}`, title: "Reward of the turn, paid at its last token" }, Scales.payment(node.reward)));
        if (!node.tokens.length) block.append(h("span", { class: "alarm" }, node.failure ? Text.visible(`${node.failure.kind}: ${node.failure.message}`) : "nothing"));
        parts.push(h("div", { class: "turn" },
          h("div", { class: "gutter" }, h("a", { href: `#/tree/${run.id}/${state.step}/${state.number}?node=${node.name}` }, node.name), h("span", {}, `A ${Scales.withSign(node.advantage)}`)), block));
      }
      if (node.observation.length || node.observation_text) {
        const text = node.observation_text.trim() || `${node.observation.length} tokens, text not kept`;
        parts.push(h("div", { class: "turn" },
          h("div", { class: "gutter soft" }, node.parent ? "environment" : "task"),
          Text.put(h("div", { class: "observation model-text", role: "group", "aria-label": "put there by the environment" }), text)));
      }
    }
    parts.push(h("div", { class: "turn" }, h("div", { class: "gutter" }), h("div", { class: "end" }, returned())));
    box.replaceChildren(...parts);
    if (held !== undefined) box.querySelector(`[data-token="${held}"]`)?.focus({ preventScroll: true });
  }

  function returned() {
    if (leaf.return === null) return `no return${leaf.failure ? `: ${Text.visible(leaf.failure.kind)}` : ""}, not trained on`;
    return `return ${Scales.number(leaf.return)}${{ true: ", succeeded", false: ", not succeeded" }[leaf.success] ?? ""} (${leaf.stop})`;
  }

  function tokenElement(index, colour) {
    const opens = index === 0 || credit.spans[index] !== credit.spans[index - 1];
    const shade = colour(index);
    const element = Text.put(h("span", {
      class: `token${opens ? " opens" : ""}${credit.spans[index] % 2 ? " odd" : ""}${index === state.at ? " chosen" : ""}`,
      "data-token": index, role: "button", tabindex: index === (state.at ?? 0) ? 0 : -1, "aria-pressed": index === state.at,
      click: () => choose(index),
    }), tokens[index].piece);
    if (shade) Turn.tint(element, shade);
    return element;
  }

  function tinter() {
    const name = state.tint;
    if (name === "probability") return (i) => Scales.plain(1 - Math.exp(tokens[i].logprob), 1);
    const figure = name === "value" ? (i) => valueOf(tokens[i]) : name === "entropy" || name === "ratio" ? (i) => tokens[i][name] : (i) => credit[name]?.[i] ?? null;
    const centre = name === "ratio" ? 1 : 0;
    const figures = tokens.map((_, i) => figure(i)).filter((v) => v !== null);
    const limit = Math.max(...figures.map((v) => Math.abs(v - centre)), 1e-9);
    const scale = name === "entropy" ? Scales.plain : Scales.signed;
    return (i) => (figure(i) === null ? null : scale(figure(i) - centre, limit));
  }

  // --- the estimators

  function drawChart() {
    const box = document.getElementById("estimators");
    if (!credit.gae) {
      box.replaceChildren(h("p", { class: "empty" }, "This branch has no reward: there is nothing to estimate."));
      chart = null;
      return;
    }
    const width = Math.max(300, box.clientWidth - 4);
    const line = (name) => (credit[name] ?? []).map((y, x) => ({ x, y })).filter((p) => p.y !== null);
    const series = ESTIMATORS.map(([name, label, index, dash]) => ({ name: label, colour: Scales.line(index), dash, points: line(name) })).filter((one) => one.points.length);
    series.push({ name: "V", colour: Scales.ink("soft"), dash: "1 3", points: tokens.map((token, x) => ({ x, y: valueOf(token) })) });
    const marks = tokens.flatMap((token, x) => {
      if (x === 0) return [];
      if (token.t === 0) return [{ x: x - 0.5, strong: true }];
      return credit.spans[x] !== credit.spans[x - 1] ? [{ x: x - 0.5 }] : [];
    });
    chart = Charts.lines({ width, height: 230, series, marks, xLabel: "model token", label: "Advantage of each token by estimator", low: 0, high: 0 });
    chart.svg.addEventListener("click", (event) => {
      const pixel = event.clientX - chart.svg.getBoundingClientRect().left;
      choose(Math.min(Math.max(Math.round(chart.valueAt(pixel)), 0), tokens.length - 1));
    });
    chart.cross(state.at);
    const key = series.map((one) => {
      const swatch = h("span", { class: "swatch" });
      swatch.style.background = one.colour;
      return h("span", { class: "key" }, swatch, one.name);
    });
    box.replaceChildren(
      h("div", { class: "panel-head" }, h("h2", {}, "Estimators side by side"), h("span", { class: "filler" }), Charts.savers(() => chart.svg, () => `credit-${state.step}-${state.number}-${leaf.name}`)),
      h("div", { class: "keys" }, key), chart.svg,
      h("p", { class: "soft small", id: "values-note" }, (tokens.hasValues
        ? "Recomputed from the recorded values of the critic"
        : "No values of a critic were recorded: the value before a turn is the mean of what the leaves below its parent were paid from there on, the tree's own estimate") +
        `; γ = ${state.gamma}, each turn's reward at its last token. Recorded is what was trained on, in the units of its method. Solid rules: turns; dotted: segments.`));
  }

  function drawByTurn() {
    if (!credit.gae) return document.getElementById("by-turn").replaceChildren();
    const shown = ESTIMATORS.filter(([name]) => credit[name]);
    const mean = (name, node) => {
      const own = tokens.map((token, i) => (token.node === node ? credit[name][i] : null)).filter((v) => v !== null);
      return own.length ? own.reduce((a, b) => a + b, 0) / own.length : null;
    };
    const rows = turns.slice(1).filter((node) => node.tokens.length).map((node) => h("tr", {},
      h("th", { scope: "row" }, node.name), shown.map(([name]) => h("td", {}, Scales.withSign(mean(name, node), 3)))));
    return document.getElementById("by-turn").replaceChildren(h("table", { id: "turn-means" },
      h("caption", {}, "Mean advantage of each turn"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "turn"), shown.map(([, label]) => h("th", { scope: "col" }, label)))), h("tbody", {}, rows)));
  }

  function drawToken() {
    const box = document.getElementById("token");
    if (state.at === null || !tokens[state.at]) {
      box.replaceChildren(h("p", { class: "soft small" }, "Choose a token to see its figures; ← and → go along the branch."));
      return;
    }
    const token = tokens[state.at];
    const figures = [
      ["p", Scales.number(Math.exp(token.logprob))], ["log-prob", Scales.number(token.logprob)],
      ["entropy", token.entropy === null ? null : Scales.number(token.entropy)], ["V", Scales.number(valueOf(token))],
      ...ESTIMATORS.map(([name, label]) => [label, credit[name] ? Scales.withSign(credit[name][state.at], 3) : null]),
      ["ratio", token.ratio === null ? null : Scales.number(token.ratio, 4)], ["segment", String(credit.spans[state.at])],
      ["reward", token.t === token.node.tokens.length - 1 && token.node.reward !== null ? Scales.payment(token.node.reward) : null],
    ].filter(([, value]) => value !== null);
    box.replaceChildren(Text.put(h("b", { class: "token model-text" }), token.piece),
      h("span", { class: "soft" }, ` token ${state.at} of ${tokens.length}, turn ${token.node.name} `),
      h("dl", { class: "line" }, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
  }

  function choose(index) {
    const before = state.at;
    state.at = index;
    for (const at of [before ?? 0, index]) {
      const element = document.querySelector(`#branch [data-token="${at}"]`);
      if (!element) continue;
      element.classList.toggle("chosen", at === index);
      element.setAttribute("aria-pressed", at === index);
      element.tabIndex = at === index ? 0 : -1;
      if (at === index) element.focus({ preventScroll: false });
    }
    chart?.cross(index);
    drawToken();
    App.announce(document.getElementById("token").textContent);
    remember();
  }

  function key(event) {
    if (!leaf) return false;
    const leaves = tree.leaves;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const branch = { ",": -1, ".": 1 }[event.key];
    if (step && !event.target.closest("input, select")) {
      choose(Math.min(Math.max((state.at ?? (step > 0 ? -1 : tokens.length)) + step, 0), tokens.length - 1));
    } else if (branch && leaves[leaves.indexOf(leaf) + branch]) {
      App.go(`#/tokens/${run.id}/${state.step}/${state.number}/${leaves[leaves.indexOf(leaf) + branch].name}`);
    } else {
      return false;
    }
    return true;
  }

  function asText() {
    if (!leaf) return "";
    const lines = [`step ${state.step}, tree ${state.number}, branch ${leaf.name}: ${Text.visible(tree.task.question)}`];
    let index = 0;
    for (const node of turns) {
      const own = node.tokens.map(() => {
        const at = index++;
        const opens = at > 0 && credit.spans[at] !== credit.spans[at - 1];
        return (opens ? "|" : "") + Text.visible(tokens[at].piece);
      });
      if (own.length) lines.push(`${node.name}  A ${Scales.withSign(node.advantage)}${node.reward ? `  reward ${Scales.payment(node.reward)}` : ""}  ${own.join("")}`);
      if (node.observation_text) lines.push(`  > ${Text.visible(node.observation_text.trim())}`);
    }
    lines.push(returned());
    return lines.join("\n") + "\n";
  }

  function themed() {
    if (leaf) recompute();
  }

  return { show, update: () => {}, themed, asText, key };
})();
