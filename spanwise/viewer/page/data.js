"use strict";
// What the page knows: of each run its state and metrics, and trees as they are asked for.
// The data come from the server that sent the page, or from the page itself (an export).

const Data = (() => {
  const embedded = document.getElementById("data");
  const exported = embedded ? JSON.parse(embedded.textContent) : null;

  async function get(address) {
    const answer = await fetch(address);
    const value = await answer.json();
    if (!answer.ok) throw new Error(value.error || `no answer (${answer.status})`);
    return value;
  }

  const fromServer = {
    states: () => get("api/runs"),
    metrics: (run, start) => get(`api/runs/${run}/metrics?start=${start}`),
    steps: (run) => get(`api/runs/${run}/steps`),
    trees: (run, step) => get(`api/runs/${run}/trees/${step}`),
    tree: (run, step, number) => get(`api/runs/${run}/trees/${step}/${number}`),
  };

  const missing = (what) => Promise.reject(new Error(`${what} is not in this file`));
  const fromPage = exported && {
    states: async () => exported.runs.map((run) => run.state),
    metrics: async (run, start) => {
      const text = exported.runs[run].metrics;
      return { start: 0, end: text.length, text: start ? "" : text, more: false };
    },
    steps: async (run) => Object.keys(exported.runs[run].trees).map(Number).sort((a, b) => a - b),
    trees: async (run, step) => {
      const kept = exported.runs[run].trees[step];
      return kept ? kept.map((tree) => tree.overview) : missing(`step ${step}`);
    },
    tree: async (run, step, number) => {
      const kept = (exported.runs[run].trees[step] || [])[number];
      return kept ? structuredClone(kept.record) : missing(`tree ${number} of step ${step}`);
    },
  };

  const source = fromPage || fromServer;
  const runs = [];
  let lost = null;

  // Brings everything up to date; true if something has changed.
  async function refresh() {
    let states;
    try {
      states = await source.states();
      lost = null;
    } catch (error) {
      const news = lost === null;
      lost = "The server does not answer; what you see is what was read before.";
      if (!runs.length) throw error;
      return news;
    }
    const changes = await Promise.all(states.map((state, index) => update(index, state).catch((error) => failed(index, error))));
    return changes.some(Boolean);
  }

  // What one run cannot show is said beside the others.
  function failed(index, error) {
    const news = runs[index].trouble !== error.message;
    runs[index].trouble = error.message;
    return news;
  }

  async function update(index, state) {
    const first = !runs[index];
    const run = (runs[index] ??= { id: index, rows: [], keys: new Set(), steps: [], end: 0, unread: 0, trouble: null, notes: [] });
    const same = run.live === state.live && Boolean(run.summary) === Boolean(state.summary);
    Object.assign(run, {
      name: Text.visible(state.name), config: state.config, summary: state.summary,
      live: state.live, notes: state.notes ?? [],
    });
    const grown = first || (!exported && state.metrics_bytes !== run.end);
    const read = grown ? await readMetrics(run) : 0;
    if (first || read || run.live || run.trouble) run.steps = await source.steps(index);
    run.trouble = null;
    return first || !same || read > 0;
  }

  // The object on a line; null where there is none.
  function parsedRow(line) {
    try {
      const row = JSON.parse(line);
      return row && typeof row === "object" && !Array.isArray(row) ? row : null;
    } catch {
      return null;
    }
  }

  async function readMetrics(run) {
    let more = true;
    let read = 0;
    while (more) {
      const found = await source.metrics(run.id, run.end);
      if (found.start < run.end) [run.rows, run.unread] = [[], 0];
      const lines = found.text.split("\n").filter(Boolean);
      const rows = lines.map(parsedRow).filter(Boolean);
      run.unread += lines.length - rows.length;
      for (const row of rows) for (const key of Object.keys(row)) run.keys.add(key);
      for (const row of rows) run.rows.push(row);
      read += rows.length;
      [run.end, more] = [found.end, found.more];
    }
    place(run);
    return read;
  }

  // Gives every row its place along each axis. Batches that fit a critic before the first
  // step are counted down to 0.
  function place(run) {
    const pretraining = run.rows.filter((row) => "critic_batch" in row).length;
    let seconds = 0;
    run.rows.forEach((row, index) => {
      for (const [name, value] of Object.entries(row)) {
        if (name.startsWith("seconds/") && Number.isFinite(value)) seconds += value;
      }
      row["axis/step"] = "critic_batch" in row ? row.critic_batch - pretraining : row.step ?? index;
      row["axis/tokens"] = row.total_sampled_tokens ?? null;
      row["axis/minutes"] = seconds / 60;
    });
  }

  const DERIVED = {
    "clip share": (row) => sum(row["clip_frac/token_low"], row["clip_frac/token_high"]),
    "unscored share": (row) => quotient(row.excluded, row.branches),
    "tokens per second": (row) => quotient(row.sampled_tokens, row["seconds/rollout"]),
    "step seconds": (row) => {
      const parts = Object.keys(row).filter((name) => name.startsWith("seconds/"));
      return parts.length ? parts.reduce((total, name) => total + row[name], 0) : null;
    },
  };
  const sum = (a, b) => (Number.isFinite(a) && Number.isFinite(b) ? a + b : null);
  const quotient = (a, b) => (Number.isFinite(a) && b > 0 ? a / b : null);

  function value(row, key) {
    const found = Object.hasOwn(DERIVED, key) ? DERIVED[key](row) : row[key];
    return drawable(found) ? found : null;
  }

  // A number whose differences from others are numbers.
  const drawable = (x) => Number.isFinite(x) && Math.abs(x) < 1e300;

  // The points of a metric along an axis; the scores before and after training stand at the
  // ends of the held-out ones.
  function points(run, key, axis) {
    const found = [];
    for (const row of run.rows) {
      const [x, y] = [row["axis/" + axis], value(row, key)];
      if (drawable(x) && y !== null) found.push({ x, y, step: row.step });
    }
    const score = key.startsWith("eval/") ? key.slice("eval/".length) : null;
    if (score && run.summary && run.rows.length) {
      const last = run.rows[run.rows.length - 1];
      const [before, after] = [run.summary.before?.[score], run.summary.after?.[score]];
      if (drawable(before)) found.unshift({ x: 0, y: before, step: 0 });
      if (drawable(after)) {
        const end = { x: drawable(last["axis/" + axis]) ? last["axis/" + axis] : 0, y: after, step: last.step };
        if (found.length > 1 && found[found.length - 1].x === end.x) found.pop();
        found.push(end);
      }
    }
    return found;
  }

  function keys() {
    return [...new Set([...Object.keys(DERIVED), ...runs.flatMap((run) => [...run.keys])])].sort();
  }

  // Settings as dotted names; what a run is called and where it lies is no setting.
  function settings(run) {
    const found = {};
    const walk = (value, name) => {
      if (value && typeof value === "object" && !Array.isArray(value)) {
        for (const [key, inner] of Object.entries(value)) {
          if (key === "class") found[name || "class"] = String(inner);
          else walk(inner, name ? `${name}.${key}` : key);
        }
      } else {
        found[name] = JSON.stringify(value);
      }
    };
    walk(run.config.config, "");
    delete found.folder;
    return { recipe: run.config.recipe, ...found };
  }

  // Runs that differ in their seed alone are one group.
  function groups() {
    const found = new Map();
    for (const run of runs) {
      const { seed: _, ...rest } = settings(run);
      const key = JSON.stringify(rest);
      if (!found.has(key)) found.set(key, { runs: [], settings: rest });
      found.get(key).runs.push(run);
    }
    const all = [...found.values()];
    const differing = differences(all.map((group) => group.settings));
    for (const group of all) {
      const changed = differing.filter((name) => name !== "recipe").slice(0, 3);
      const several = all.filter((o) => o.settings.recipe === group.settings.recipe).length > 1;
      const told = changed.filter((name) => name in group.settings).map((name) => `${name.split(".").pop()} ${group.settings[name]}`);
      group.name = Text.visible([group.settings.recipe, ...(several ? told : [])].join(", "));
    }
    return all;
  }

  function differences(list) {
    const names = new Set(list.flatMap((one) => Object.keys(one)));
    return [...names].filter((name) => list.some((one) => one[name] !== list[0][name]));
  }

  function notes() {
    const found = lost ? [lost] : [];
    for (const run of runs) {
      const unread = run.unread ? `${run.unread} of the lines of metrics cannot be read` : null;
      found.push(...[...run.notes, unread, run.trouble].filter(Boolean).map((note) => `${run.name}: ${note}`));
    }
    return found;
  }

  const nameOf = (path) => path.join(".") || "prompt";

  // A tree with its turns joined up. A leaf that was scored has a return: all that was paid
  // from the prompt to its end.
  async function tree(run, step, number) {
    const record = await source.tree(run, step, number);
    const byPath = new Map();
    for (const node of record.nodes) {
      node.name = nameOf(node.path);
      node.parent = node.path.length ? byPath.get(nameOf(node.path.slice(0, -1))) : null;
      node.children = [];
      node.paid = (node.parent?.paid ?? 0) + (node.reward ?? 0);
      byPath.set(node.name, node);
      if (node.parent) node.parent.children.push(node);
    }
    record.root = record.nodes[0];
    record.node = (name) => byPath.get(name) ?? null;
    record.leaves = record.nodes.filter((node) => !node.children.length && node.parent);
    for (const node of [...record.nodes].reverse()) {
      node.return = node.children.length || node.reward === null ? null : node.paid;
      node.leaves = node.children.length
        ? node.children.reduce((total, child) => total + child.leaves, 0) : 1;
    }
    return record;
  }

  return {
    runs, refresh, points, keys, groups, settings, differences, notes, tree, nameOf,
    trees: (run, step) => source.trees(run, step),
    exported: Boolean(exported),
  };
})();
