"use strict";
// One turn in full: what was said, what was answered, and every figure of it.

const Turn = (() => {
  const finite = (array) => (array ?? []).filter((v) => v !== null);
  const mean = (array) => (finite(array).length ? finite(array).reduce((a, b) => a + b, 0) / finite(array).length : null);

  // Share of the tokens whose ratio has left the clipping range on the side where the clip acts.
  function clippedShare(node, run) {
    const limits = run.config.config.objective;
    if (!node.ratio || node.advantage === null) return null;
    const credit = (t) => node.advantages?.[t] ?? node.advantage;
    const clipped = node.ratio.filter((ratio, t) =>
      (credit(t) > 0 && ratio > 1 + limits.clip_high) || (credit(t) < 0 && ratio !== null && ratio < 1 - limits.clip_low));
    return clipped.length / Math.max(node.ratio.length, 1);
  }

  // Right answers to the task, where it has any.
  const answers = ({ answers: known }) => (known.length
    ? [h("span", { class: "soft" }, "  answer "), h("b", { class: "model-text" }, known.map(Text.visible).join(" / "))] : []);

  // One line that stands for a turn.
  const label = (node) => Text.visible(node.parent ? node.label || node.text || node.stop : "prompt");

  // What became of a leaf, as short as it goes: "✓ 1", "0.7 length", "! tool_timeout".
  function ending(node) {
    if (node.failure || node.return === null) return `! ${node.failure ? Text.visible(node.failure.kind) : "no reward"}`;
    const cut = ["malformed", "length", "budget"].includes(node.stop) ? ` ${node.stop}` : "";
    return `${{ true: "✓ ", false: "✗ " }[node.success] ?? ""}${Scales.number(node.return)}${cut}`;
  }

  // run, tree: what it belongs to. toGo: see Credit.returnsToGo. choose, read: go to
  // another turn, go to the branch of this one.
  function inFull(node, { run, tree, toGo, choose, read }) {
    const { advantage: credit } = run.config.config;
    const rows = [];
    const add = (name, value, title) => rows.push(h("tr", { title }, h("th", { scope: "row" }, name), h("td", {}, value)));
    if (node.parent) {
      add("advantage", Scales.withSign(node.advantage, 3), "As it was trained on, mean over the turn's tokens");
      if (node.value !== null) add("value", Scales.withSign(node.value, 3));
      if (credit.class === "TreeAdvantage" && node.value !== null) {
        for (const [name, value] of Object.entries(Credit.treeModes(node, tree))) {
          const used = credit.advantage === name;
          add(h("span", { class: "mode" }, `by ${name}`), h(used ? "b" : "span", {}, Scales.withSign(value, 3) + (used ? " used" : "")));
        }
      }
      add("entropy", `${Scales.number(node.entropy)} nats a token`);
      add("tokens", String(node.tokens.length));
      if (mean(node.ratio) !== null) add("policy ratio, mean", Scales.number(mean(node.ratio), 5));
      if (clippedShare(node, run) !== null) add("tokens clipped", `${(100 * clippedShare(node, run)).toFixed(0)} %`);
    }
    if (node.reward !== null) add("reward", Scales.number(node.reward), "Paid at the turn's last token");
    if (node.return !== null) add("return", Scales.number(node.return), "All rewards from the prompt to here");
    if (node.success !== null) add("success", node.success ? "yes" : "no");
    if (node.children.length) add("leaves below", `${node.leaves}, mean return from here ${Scales.number(toGo.get(node).from)}`);
    add("ended by", node.stop);
    return h("div", {},
      h("h2", {}, node.parent ? `Turn ${node.name}` : "Prompt"),
      node.failure ? h("p", { class: "alarm" }, `Failed, ${Text.visible(node.failure.kind)}: ${Text.visible(node.failure.message)}. This branch has no return and is not trained on.`) : null,
      ...node.faults.map((fault) => h("p", { class: "alarm" }, `${Text.visible(fault.kind)}, ${Text.visible(fault.then)}: ${Text.visible(fault.message)}`)),
      node.expansion ? h("p", { class: "expansion" }, whyExpanded(node, tree, choose)) : null,
      node.parent ? h("h3", {}, "The model") : null,
      node.parent ? modelText(node) : null,
      node.observation.length || node.observation_text ? h("h3", {}, node.parent ? "The environment" : "The task") : null,
      node.observation.length || node.observation_text ? Text.put(h("div", { class: "observation model-text" }), node.observation_text.trim() || `${node.observation.length} tokens, text not kept`) : null,
      h("table", { class: "figures" }, rows),
      node.parent ? h("p", {}, h("button", { id: "read", class: "primary", click: () => read(node) }, "Read this branch token by token")) : null,
      node.parent ? pairs("What the environment says of it", node.outcome) : pairs("What is known of the task", tree.task.info));
  }

  function whyExpanded(node, tree, choose) {
    const of = Data.nameOf(node.expansion.of);
    const text = of === "prompt"
      ? `Sampled in round ${node.expansion.round} at the prompt: no turn could be branched at.`
      : `Sampled in round ${node.expansion.round} as a fresh sibling of ${of}, which was chosen by its entropy less the penalty for siblings: ${Scales.number(node.expansion.score)}.`;
    return [text + " ", h("button", { class: "link", click: () => choose(tree.node(of)) }, `Go to ${of}`)];
  }

  function modelText(node) {
    const box = h("div", { class: "tokens model-text" });
    if (!node.pieces) return Text.put(box, node.text);
    node.pieces.forEach((piece, t) => {
      const token = Text.put(h("span", { class: "token", title: tokenTitle(node, t) }), piece);
      tint(token, Scales.plain(1 - Math.exp(node.engine_logprobs[t]), 1));
      box.append(token);
    });
    return box;
  }

  function tokenTitle(node, t) {
    const parts = [`p ${Scales.number(Math.exp(node.engine_logprobs[t]))}, log-prob ${Scales.number(node.engine_logprobs[t])}`];
    if (node.values) parts.push(`V ${Scales.number(node.values[t])}`);
    if (node.advantages) parts.push(`A ${Scales.withSign(node.advantages[t], 3)}`);
    return parts.join(", ");
  }

  // Values of the environment's own, by name.
  function pairs(title, values) {
    const entries = Object.entries(values);
    if (!entries.length) return null;
    return h("details", { open: true }, h("summary", {}, title),
      h("dl", { class: "outcome model-text" }, entries.flatMap(([key, value]) => [
        h("dt", {}, Text.visible(key)), h("dd", {}, Text.visible(typeof value === "string" ? value : JSON.stringify(value)))])));
  }

  function tint(element, colour) {
    element.style.background = colour;
    element.style.color = Scales.textOn(colour);
  }

  return { inFull, answers, label, ending, mean, clippedShare, tint };
})();
