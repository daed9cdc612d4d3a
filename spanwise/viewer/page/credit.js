"use strict";
// The credit of one branch, recomputed from what was recorded. Arrays hold the model's
// tokens of the branch in order; environment tokens are stepped over, so they are not here.

const Credit = (() => {
  // A boundary at every token that was less likely than the threshold when it was sampled.
  function segmentsByProbability(logprobs, threshold, boundary) {
    const limit = threshold > 0 ? Math.log(threshold) : -Infinity;
    const spans = [];
    let span = 0;
    for (let t = 0; t < logprobs.length; t++) {
      const decides = boundary === "start" ? t : t - 1;
      if (t > 0 && logprobs[decides] < limit) span += 1;
      spans.push(span);
    }
    return spans;
  }

  const byToken = (length) => Array.from({ length }, (_, t) => t);
  const whole = (length) => new Array(length).fill(0);

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

  // Mean outcome of the leaves below every node: the tree's own estimate of its value.
  function meanOutcomes(nodes) {
    const found = new Map();
    for (let index = nodes.length - 1; index >= 0; index--) {
      const node = nodes[index];
      const below = node.children.map((child) => found.get(child));
      let sum = 0;
      let count = 0;
      if (!node.children.length && node.reward !== null) {
        [sum, count] = [node.reward, 1];
      }
      for (const child of below) {
        sum += child.sum;
        count += child.count;
      }
      found.set(node, { sum, count, mean: count ? sum / count : null });
    }
    return found;
  }

  // The turn's advantage in each of the modes of tree credit; null without values.
  function treeModes(node, root) {
    if (node.value === null || !node.parent || node.parent.value === null) return null;
    const overParent = node.value - node.parent.value;
    const overRoot = node.value - root.value;
    return {
      node_value: node.value,
      over_parent: overParent,
      over_root: overRoot,
      over_both: overParent + overRoot,
    };
  }

  return {
    segmentsByProbability, byToken, whole, spanAdvantages, spanStatistics, meanOutcomes, treeModes,
  };
})();
