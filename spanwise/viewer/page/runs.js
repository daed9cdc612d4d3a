"use strict";
// The run page: curves of one or several runs, their settings and what came out.

const Runs = (() => {
  const PANELS = [
    ["Score", "unforked/score", "score"],
    ["Success", "unforked/success", "success"],
    ["Held-out score", "eval/success", "eval/greedy_success", "eval/score", "eval/greedy_score"],
    ["Length", "turn_tokens", "turns", "sampled_tokens", "branches"],
    ["Entropy", "entropy", "turn_entropy"],
    ["Clip share", "clip share", "clip_frac/token_low", "clip_frac/token_high", "clip_frac/span_low", "clip_frac/span_high"],
    ["Explained variance", "explained_variance", "value_mean"],
    ["Faults", "unscored share", "stop/malformed", "stop/failure", "stop/length", "stop/budget", "skipped_steps", "dropped_prompts"],
    ["Tokens per second", "tokens per second", "step seconds", "seconds/rollout", "seconds/update"],
    ["Engine and trainer mismatch", "engine_mismatch", "engine_mismatch_max", "engine_kl", "engine_ratio/token_max", "engine_ratio/turn_max", "engine_ratio/trajectory_max", "engine_ratio/trajectory_min", "importance/mean", "importance/masked_share"],
    ["Divergence", "approx_kl", "kl", "ratio_mean", "ratio_min", "ratio_max"],
    ["Gradient", "gradient_norm", "loss", "value_gradient_norm", "value_loss"],
    ["Learning rate", "learning_rate", "critic_learning_rate"],
    ["Spans", "credit/span_length_mean", "credit/num_spans", "credit/span_open_share"],
    ["Shared tokens", "computed_to_total", "unique_token_fraction", "packed"],
  ];
  const AXES = [["step", "step"], ["tokens", "sampled tokens"], ["minutes", "minutes"]];
  const isShare = (key) => /(^|[/_])success$/.test(key);

  const SHOW = "show."; // before the name of a panel in the address

  let state;

  function show(main, _, query) {
    state = {
      axis: query.get("x") ?? "step",
      smooth: Number(query.get("smooth") ?? 0.6),
      mode: query.get("mode") ?? "each",
      hidden: new Set((query.get("hide") ?? "").split(",").filter(Boolean).map(Number)),
      chosen: new Map([...query].filter(([name]) => name.startsWith(SHOW)).map(([name, key]) => [name.slice(SHOW.length), key])),
      large: query.get("large"),
    };
    main.replaceChildren(controls(), h("div", { id: "panels" }), h("section", { id: "summary" }), h("section", { id: "settings" }));
    draw();
    tables();
  }

  function remember() {
    const query = new URLSearchParams();
    if (state.axis !== "step") query.set("x", state.axis);
    if (state.smooth !== 0.6) query.set("smooth", state.smooth);
    if (state.mode !== "each") query.set("mode", state.mode);
    if (state.hidden.size) query.set("hide", [...state.hidden].join(","));
    for (const [title, key] of state.chosen) query.set(SHOW + title, key);
    if (state.large !== null) query.set("large", state.large);
    App.remember("#/runs", query);
  }

  function change(name, value) {
    state[name] = value;
    remember();
    draw();
  }

  // What is drawn: each run, or each group of seeds, with its colour.
  function subjects() {
    if (state.mode === "median") {
      return Data.groups().map((group, index) => ({
        id: group.runs[0].id, name: `${group.name} (${group.runs.length} ${group.runs.length > 1 ? "seeds" : "seed"})`,
        runs: group.runs, colour: Scales.line(index),
      }));
    }
    return Data.runs.map((run) => ({ id: run.id, name: run.name, runs: [run], colour: Scales.line(run.id) }));
  }

  function controls() {
    return h("div", { class: "controls" },
      select("Along", AXES, state.axis, (v) => change("axis", v), "axis"),
      slider("Smoothing", { min: 0, max: 0.99, step: 0.01, value: state.smooth, id: "smooth", shown: (v) => v.toFixed(2) }, (v) => change("smooth", v)),
      Data.runs.length > 1
        ? select("Draw", [["each", "each run"], ["median", "median over seeds"]], state.mode, (v) => change("mode", v), "mode") : null,
      h("div", { id: "legend", role: "group", "aria-label": "Runs" }));
  }

  function legend() {
    document.getElementById("legend").replaceChildren(...subjects().map((subject) => {
      const shown = !state.hidden.has(subject.id);
      const swatch = h("span", { class: "swatch" });
      swatch.style.background = subject.colour;
      const box = h("input", {
        type: "checkbox", checked: shown, "data-run": subject.id,
        change: () => {
          if (box.checked) state.hidden.delete(subject.id);
          else state.hidden.add(subject.id);
          change("hidden", state.hidden);
        },
      });
      const live = subject.runs.some((run) => run.live) ? h("em", { class: "live" }, "live") : null;
      return h("label", {}, box, swatch, h("span", { class: "model-text" }, subject.name), live);
    }));
  }

  function draw() {
    const held = document.activeElement?.closest?.(".panel")?.dataset.panel;
    legend();
    const box = document.getElementById("panels");
    box.classList.toggle("large", state.large !== null);
    const panels = recorded().filter(([title]) => [title, null].includes(state.large)).map(panel);
    box.replaceChildren(...panels.length ? panels : [h("p", { class: "empty" }, "No metrics yet.")]);
    if (held !== undefined) box.querySelector(`[data-panel="${CSS.escape(held)}"] .plot`)?.focus({ preventScroll: true });
  }

  // Every panel that some run has a metric for, with the keys of those. The environment's own
  // metrics and the user's have a panel each.
  function recorded() {
    const keys = Data.keys();
    const own = keys.filter((key) => /^(env|own)\//.test(key)).map((key) => [key, key, `eval/${key}`, `eval/greedy_${key}`]);
    return [...PANELS, ...own, ["Any metric", ...keys]]
      .map(([title, ...all]) => [title, ...all.filter((key) => Data.runs.some((run) => Data.points(run, key, state.axis).length))])
      .filter(([, ...found]) => found.length);
  }

  function curves(key) {
    const found = [];
    for (const subject of subjects()) {
      if (state.hidden.has(subject.id)) continue;
      const raw = subject.runs.map((run) => Data.points(run, key, state.axis));
      const soft = raw.map((points) => (points.length > 12 ? Charts.smoothed(points, state.smooth) : points));
      if (subject.runs.length > 1) {
        const middle = Charts.spread(soft);
        for (const points of soft) found.push({ points, colour: subject.colour, faint: true });
        found.push({ name: subject.name, colour: subject.colour, points: middle, band: middle, subject });
        continue;
      }
      if (state.smooth > 0 && raw[0].length > 12) found.push({ points: raw[0], colour: subject.colour, faint: true });
      found.push({ name: subject.name, colour: subject.colour, points: soft[0], subject });
    }
    return found;
  }

  function panel([title, ...keys]) {
    const fallback = title === "Any metric" ? keys.find((k) => k === "loss") ?? keys[0] : keys[0];
    const key = keys.includes(state.chosen.get(title)) ? state.chosen.get(title) : fallback;
    const chooser = keys.length > 1
      ? select(`Metric of ${Text.visible(title)}`, keys.map((k) => [k, Text.visible(k)]), key, (v) => {
        state.chosen.set(title, v);
        change("chosen", state.chosen);
      }) : h("span", { class: "soft" }, Text.visible(key));
    const enlarge = () => change("large", state.large === null ? title : null);
    const head = h("div", { class: "panel-head" }, h("h2", {}, Text.visible(title)), chooser, h("span", { class: "filler" }));
    const series = curves(key);
    const large = state.large !== null;
    const width = large ? Math.max(600, document.getElementById("main").clientWidth - 60) : panelWidth();
    const picture = Charts.lines({
      width, height: large ? 440 : 150, series, xLabel: AXES.find(([name]) => name === state.axis)[1],
      label: Text.visible(`${title}: ${key}`) + ` by ${state.axis}. ${spoken(series)}`, low: isShare(key) ? 0 : null, high: isShare(key) ? 1 : null,
    });
    const readout = h("div", { class: "readout", "aria-hidden": true });
    const plot = h("div", { class: "plot", tabindex: 0, role: "group", "aria-label": `${Text.visible(title)}, curve; arrow keys read it, Enter enlarges it` }, picture.svg, readout);
    follow(plot, picture, series.filter((one) => one.name), readout, enlarge);
    head.append(
      Charts.savers(() => picture.svg, () => Text.visible(key).replaceAll(/[/ ]/g, "-")),
      h("button", { click: enlarge, class: "enlarge", "aria-label": large ? "All curves" : `Enlarge ${Text.visible(title)}`, title: "Enlarge (Enter)" }, large ? "All curves" : "⤢"));
    return h("section", { class: "panel", "data-panel": title }, head, plot);
  }

  function panelWidth() {
    const columns = innerWidth < 760 ? 1 : innerWidth < 1120 ? 2 : innerWidth < 1700 ? 3 : 4;
    const inner = document.getElementById("main").clientWidth - 32;
    return Math.floor((inner - (columns - 1) * 12) / columns) - 26;
  }

  function spoken(series) {
    return series.filter((one) => one.name && one.points.length).map((one) => {
      const [first, last] = [one.points[0], one.points[one.points.length - 1]];
      return `${one.name}: from ${Scales.number(first.y)} to ${Scales.number(last.y)}`;
    }).join("; ");
  }

  // Mouse and keys read the curves; a click leads to the trees of that step.
  function follow(plot, picture, series, readout, enlarge) {
    const longest = series.reduce((a, b) => (b.points.length > a.points.length ? b : a), series[0] ?? { points: [] }).points;
    let at = null;
    const read = (index) => {
      if (!longest.length) return;
      at = Math.min(Math.max(index, 0), longest.length - 1);
      const x = longest[at].x;
      picture.cross(x);
      const lines = series.filter((one) => one.points.length).map((one) => {
        const p = one.points[Charts.nearest(one.points, x)];
        const swatch = h("span", { class: "swatch" });
        swatch.style.background = one.colour;
        const band = p.low !== undefined ? ` (${Scales.number(p.low)} to ${Scales.number(p.high)})` : "";
        return h("div", {}, swatch, h("b", {}, Scales.number(p.y, 4)), band + " ", h("span", { class: "model-text" }, one.name));
      });
      readout.replaceChildren(h("div", { class: "soft" }, `${state.axis} ${Scales.number(x, 4)}`), ...lines);
      readout.classList.add("shown");
    };
    const hide = () => {
      picture.cross(null);
      readout.classList.remove("shown");
    };
    plot.addEventListener("pointermove", (event) => {
      const pixel = event.clientX - picture.svg.getBoundingClientRect().left;
      read(Charts.nearest(longest, picture.valueAt(pixel)));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("click", () => {
      const subject = series.find((one) => one.points === longest)?.subject;
      const step = at === null ? null : longest[at].step;
      const run = subject?.runs[0];
      if (!run || !run.steps.length || step === undefined || step === null) return;
      const near = run.steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
      App.go(`#/tree/${run.id}/${near}`);
    });
    plot.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        read(at === null ? longest.length - 1 : at + (event.key === "ArrowRight" ? 1 : -1));
        App.announce(readout.textContent);
        event.preventDefault();
      } else if (event.key === "Enter") {
        enlarge();
      }
    });
  }

  const FIGURES = [
    ["recipe", (run) => run.config.recipe],
    ["seed", (run) => run.config.config.seed],
    ["steps", (run) => run.rows.length ? run.rows[run.rows.length - 1].step : 0],
    ["sampled, before → after", (run) => scores(run, "")],
    ["greedy, before → after", (run) => scores(run, "greedy_")],
    ["explained variance", (run) => run.summary?.explained_variance],
    ["sampled tokens", (run) => run.summary?.sampled_tokens ?? last(run, "total_sampled_tokens")],
    ["tokens of the rows", (run) => run.summary?.row_tokens],
    ["computed", (run) => run.summary?.computed_tokens],
    ["seconds", (run) => run.summary?.train_seconds],
    ["memory, MB", (run) => run.summary?.peak_memory_mb],
  ];

  const last = (run, key) => (run.rows.length ? run.rows[run.rows.length - 1][key] : null);

  // Held-out success as a percentage, or the score where the environment knows no success.
  function scores(run, kind) {
    const found = (name) => [run.summary?.before, run.summary?.after].map((one) => (Number.isFinite(one?.[kind + name]) ? one[kind + name] : null));
    const [before, after] = found("success").map((share) => share && 100 * share);
    if (before !== null && after !== null) return `${before.toFixed(1)} → ${after.toFixed(1)} % (${Scales.withSign(after - before, 1)})`;
    const [low, high] = found("score");
    return low === null || high === null ? null : `${Scales.number(low)} → ${Scales.number(high)} (${Scales.withSign(high - low)})`;
  }

  function summaryRows() {
    const shown = FIGURES.filter(([, figure]) => Data.runs.some((run) => figure(run) !== null && figure(run) !== undefined));
    const cell = (value) => (typeof value === "number" ? Scales.number(value, 4) : value ? Text.visible(String(value)) : "–");
    return [["run", ...shown.map(([name]) => name)],
      ...Data.runs.map((run) => [run.name, ...shown.map(([, figure]) => cell(figure(run)))])];
  }

  function table(rows, id) {
    const [head, ...body] = rows;
    return h("div", { class: "scroll" }, h("table", { id },
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, body.map((row) => h("tr", {}, row.map((text, i) => h(i ? "td" : "th", i ? {} : { scope: "row", class: "model-text" }, text)))))));
  }

  function tables() {
    document.getElementById("summary").replaceChildren(h("h2", {}, "Outcome"), table(summaryRows(), "outcome"));
    const all = Data.runs.map((run) => Object.fromEntries(
      Object.entries(Data.settings(run)).map(([name, value]) => [name, Text.visible(value)])));
    const names = [...new Set(all.flatMap((one) => Object.keys(one)))];
    const differing = new Set(Data.differences(all));
    const rows = (list) => [["setting", ...Data.runs.map((run) => run.name)], ...list.map((name) => [name, ...all.map((one) => one[name] ?? "–")])];
    const box = document.getElementById("settings");
    const open = box.querySelector("details")?.open;
    box.replaceChildren(h("div", {},
      h("h2", {}, Data.runs.length > 1 ? "Settings that differ" : "Settings"),
      Data.runs.length > 1 ? (differing.size ? table(rows(names.filter((n) => differing.has(n))), "differences") : h("p", {}, "None: these runs differ in nothing that was set.")) : null,
      h("details", { open: Boolean(open) }, h("summary", {}, `All ${names.length} settings`), table(rows(names), "all-settings"))));
  }

  function update() {
    draw();
    tables();
  }

  function asText() {
    return summaryRows().map((row) => row.join("\t")).join("\n") + "\n";
  }

  return { show, update, asText, key: () => false };
})();
