"use strict";
// One turn in full: what was said, what was answered, and every figure of it.

const Turn = (() => {
  const finite = (array) => (array ?? []).filter((v) => v !== null);
  const mean = (array) => (finite(array).length ? finite(array).reduce((a, b) => a + b, 0) / finite(array).length : null);

  // Share of the tokens whose ratio has left the clipping range on the side where the clip acts.
  function clippedShare(node, run) {
    const limits = run.config?.config?.objective;
    if (!node.ratio || !limits || node.advantage === null) return null;
    const credit = (t) => node.advantages?.[t] ?? node.advantage;
    const clipped = node.ratio.filter((ratio, t) =>
      (credit(t) > 0 && ratio > 1 + limits.clip_high) || (credit(t) < 0 && ratio !== null && ratio < 1 - limits.clip_low));
    return clipped.length / Math.max(node.ratio.length, 1);
  }

  // run, tree: what it belongs to. outcomes: see Credit.meanOutcomes. choose, read: go to
  // another turn, go to the branch of this one.
  function inFull(node, { run, tree, outcomes, choose, read }) {
    const own = outcomes.get(node);
    const rows = [];
    const add = (name, value, title) => rows.push(h("tr", { title }, h("th", { scope: "row" }, name), h("td", {}, value)));
    if (node.parent) {
      add("advantage", Scales.withSign(node.advantage, 3), "As it was trained on, mean over the turn's tokens");
      if (node.value !== null) add("value", Scales.withSign(node.value, 3));
      if (run.config?.config?.advantage?.class === "TreeAdvantage") {
        for (const [name, value] of Object.entries(Credit.treeModes(node, tree.root) ?? {})) {
          const used = run.config.config.advantage.advantage === name;
          add(h("span", { class: "mode" }, `by ${name}`), h(used ? "b" : "span", {}, Scales.withSign(value, 3) + (used ? " used" : "")));
        }
      }
      add("entropy", `${Scales.number(node.entropy)} nats a token`);
      add("tokens", String(node.tokens.length));
      if (mean(node.ratio) !== null) add("policy ratio, mean", Scales.number(mean(node.ratio), 5));
      if (clippedShare(node, run) !== null) add("tokens clipped", `${(100 * clippedShare(node, run)).toFixed(0)} %`);
    }
    if (node.reward !== null) add("reward", Scales.number(node.reward));
    if (node.children.length) add("leaves below", `${node.leaves}, mean outcome ${Scales.number(own.mean)}`);
    add("ended by", node.stop);
    return h("div", {},
      h("h2", {}, node.parent ? `Turn ${node.name}` : "Prompt"),
      node.failure ? h("p", { class: "alarm" }, `Failed, ${Text.visible(node.failure.kind)}: ${Text.visible(node.failure.message)}. This branch has no reward and is not trained on.`) : null,
      ...node.faults.map((fault) => h("p", { class: "alarm" }, `${Text.visible(fault.kind)}, ${Text.visible(fault.then)}: ${Text.visible(fault.message)}`)),
      node.expansion ? h("p", { class: "expansion" }, whyExpanded(node, tree, choose)) : null,
      node.parent ? h("h3", {}, "The model") : null,
      node.parent ? modelText(node) : null,
      node.observation.length || node.observation_text ? h("h3", {}, node.parent ? "The environment" : "The task") : null,
      node.observation.length || node.observation_text ? Text.put(h("div", { class: "observation model-text" }), node.observation_text.trim() || `${node.observation.length} tokens, text not kept`) : null,
      h("table", { class: "figures" }, rows),
      node.parent ? h("p", {}, h("button", { id: "read", class: "primary", click: () => read(node) }, "Read this branch token by token")) : null,
      outcomeList(node));
  }

  function whyExpanded(node, tree, choose) {
    const of = node.expansion.of.join(".") || "prompt";
    const text = of === "prompt"
      ? `Sampled in round ${node.expansion.round} at the prompt: no turn could be branched at.`
      : `Sampled in round ${node.expansion.round} as a fresh sibling of ${of}, which was chosen by its entropy less the penalty for siblings: ${Scales.number(node.expansion.score)}.`;
    return [text + " ", tree.node(of) ? h("button", { class: "link", click: () => choose(tree.node(of)) }, `Go to ${of}`) : ""];
  }

  function modelText(node) {
    const box = h("div", { class: "tokens model-text" });
    if (!node.pieces) return Text.put(box, node.text);
    node.pieces.forEach((piece, t) => {
      const token = Text.put(h("span", { class: "token", title: tokenTitle(node, t) }), piece);
      if (node.engine_logprobs) tint(token, Scales.plain(1 - Math.exp(node.engine_logprobs[t] ?? 0), 1));
      box.append(token);
    });
    return box;
  }

  function tokenTitle(node, t) {
    const parts = [];
    if (node.engine_logprobs) parts.push(`p ${Scales.number(Math.exp(node.engine_logprobs[t] ?? 0))}, log-prob ${Scales.number(node.engine_logprobs[t])}`);
    if (node.values) parts.push(`V ${Scales.number(node.values[t])}`);
    if (node.advantages) parts.push(`A ${Scales.withSign(node.advantages[t], 3)}`);
    return parts.join(", ");
  }

  function outcomeList(node) {
    const entries = Object.entries(node.outcome);
    if (!entries.length) return null;
    return h("details", { open: true }, h("summary", {}, "What the environment says of it"),
      h("dl", { class: "outcome model-text" }, entries.flatMap(([key, value]) => [
        h("dt", {}, Text.visible(key)), h("dd", {}, Text.visible(typeof value === "string" ? value : JSON.stringify(value)))])));
  }

  function tint(element, colour) {
    element.style.background = colour;
    element.style.color = Scales.textOn(colour);
  }

  return { inFull, mean, clippedShare, tint };
})();
