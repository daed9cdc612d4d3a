"use strict";
// The credit of one branch, recomputed from what was recorded. Arrays hold the model's
// tokens of the branch in order; environment tokens are stepped over, so they are not here.

const Credit = (() => {
  // A token less likely than the threshold opens a span (side "start") or closes one ("end").
  function lowProbability(logprobs, threshold, side) {
    const limit = threshold > 0 ? Math.log(threshold) : -Infinity;
    const spans = [];
    let span = 0;
    for (let t = 0; t < logprobs.length; t++) {
      const decides = side === "start" ? t : t - 1;
      if (t > 0 && logprobs[decides] < limit) span += 1;
      spans.push(span);
    }
    return spans;
  }

  const byToken = (length) => Array.from({ length }, (_, t) => t);
  const whole = (length) => new Array(length).fill(0);

  // What each token of a branch is paid: the reward of a turn stands at its last token, or at
  // the last one before a turn without tokens.
  function tokenRewards(turns) {
    const rewards = [];
    for (const node of turns) {
      rewards.push(...node.tokens.map(() => 0));
      if (rewards.length) rewards[rewards.length - 1] += node.reward ?? 0;
    }
    return rewards;
  }

  // delta_t = r_t + gamma * V_next - V_t
  // A_t     = delta_t + gamma * lam_t * A_next, lam_t = 1 inside a span and lam between two
  function spanAdvantages(rewards, values, spans, { gamma = 1, lam = 0.95 } = {}) {
    const advantages = new Array(rewards.length);
    let next = 0;
    for (let t = rewards.length - 1; t >= 0; t--) {
      const last = t === rewards.length - 1;
      const decay = !last && spans[t] === spans[t + 1] ? 1 : lam;
      const delta = rewards[t] + gamma * (last ? 0 : values[t + 1]) - values[t];
      next = delta + (last ? 0 : gamma * decay * next);
      advantages[t] = next;
    }
    return advantages;
  }

  function spanStatistics(spans) {
    const count = spans.length ? spans[spans.length - 1] + 1 : 0;
    return { count, meanLength: count ? spans.length / count : 0 };
  }

  // Of every node, the mean over the scored leaves below of what is paid from that turn on
  // (its own reward included) and after it: the tree's own estimates of its value.
  function returnsToGo(nodes) {
    const found = new Map();
    for (const node of [...nodes].reverse()) {
      const below = node.children.map((child) => found.get(child)).filter((one) => one.count);
      const own = node.reward ?? 0;
      const count = node.children.length ? below.reduce((sum, one) => sum + one.count, 0) : Number(node.reward !== null);
      const after = count ? below.reduce((sum, one) => sum + one.count * one.from, 0) / count : null;
      found.set(node, { count, after, from: count ? own + after : null });
    }
    return found;
  }

  // The turn's advantage in the modes of tree credit. Values are of what is still to come:
  // where turns are paid on the way, they do not say what over_parent would give.
  function treeModes(node, { root, nodes }) {
    const overRoot = node.value - root.value;
    if (nodes.some((one) => one.reward && one.children.length)) return { node_value: node.value, over_root: overRoot };
    const overParent = node.value - node.parent.value;
    return { node_value: node.value, over_parent: overParent, over_root: overRoot, over_both: overParent + overRoot };
  }

  return {
    lowProbability, byToken, whole, tokenRewards, spanAdvantages, spanStatistics, returnsToGo, treeModes,
  };
})();
