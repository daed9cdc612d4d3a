"use strict";
// The address says what is shown: #/runs, #/tree/RUN/STEP/TREE, #/tokens/RUN/STEP/TREE/LEAF,
// each with its choices after a question mark.

const App = (() => {
  const PAGES = { runs: Runs, tree: Trees, tokens: Tokens };
  const EVERY_MS = 2000;

  let page = null; // what is on show; null while that changes
  let routing = Promise.resolve(); // pages are drawn one after the other, never into each other

  const main = document.getElementById("main");

  function parse() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    const [name, ...rest] = path.split("/").filter(Boolean);
    return { name: PAGES[name] ? name : "runs", rest, query: new URLSearchParams(query ?? "") };
  }

  function route() {
    routing = routing.then(drawPage);
    return routing;
  }

  // Draws the page anew once what is being drawn is there.
  function redraw() {
    routing = routing.then(() => page && (page.themed ?? page.update)());
  }

  async function drawPage() {
    const { name, rest, query } = parse();
    page = null;
    main.dataset.address = location.hash;
    delete main.dataset.ready;
    for (const tab of Object.keys(PAGES)) {
      const link = document.getElementById(`to-${tab}`);
      if (tab === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${{ runs: "Runs", tree: "Trees", tokens: "Tokens" }[name]} – spanwise`;
    try {
      await PAGES[name].show(main, rest, query);
      page = PAGES[name];
    } catch (error) {
      main.replaceChildren(h("p", { class: "empty", role: "alert" }, Text.visible(error.message)));
    }
    main.dataset.ready = name;
    around();
  }

  // Goes somewhere; the way back is kept.
  function go(hash) {
    if (location.hash === hash) route();
    else location.hash = hash;
  }

  // Writes the choices of a page into the address, without a step in the history. A page that is
  // still being drawn when its reader has gone on to another leaves the address alone.
  function remember(path, query) {
    if (location.hash !== main.dataset.address) return;
    const text = query.toString();
    const hash = text ? `${path}?${text}` : path;
    const { name } = parse();
    if (location.hash !== hash) history.replaceState(null, "", hash);
    main.dataset.address = location.hash;

    const tab = document.getElementById(`to-${name}`);
    tab.setAttribute("href", hash);
    if (name === "tree") document.getElementById("to-tokens").setAttribute("href", path.replace("#/tree", "#/tokens"));
    if (name === "tokens") document.getElementById("to-tree").setAttribute("href", path.replace("#/tokens", "#/tree").split("/").slice(0, 5).join("/"));
  }

  // Notes on what cannot be shown, and whether a run is still going on.
  function around() {
    const notes = Data.notes();
    document.getElementById("notes").replaceChildren(...notes.map((note) => h("p", { class: "note" }, Text.visible(note))));
    const live = Data.runs.filter((run) => run.live);
    document.getElementById("live").textContent = live.length
      ? `● live, step ${Math.max(0, ...live.map((run) => run.rows[run.rows.length - 1]?.step ?? 0))}` : "";
  }

  let announced;
  function announce(text) {
    clearTimeout(announced);
    announced = setTimeout(() => (document.getElementById("announce").textContent = text), 150);
  }

  function setTheme(name) {
    document.documentElement.dataset.theme = name;
    document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
    try {
      localStorage.setItem("theme", name);
    } catch {
      // A page without storage forgets the theme, and that is all.
    }
  }

  function toggleTheme() {
    setTheme(Scales.theme() === "dark" ? "light" : "dark");
    redraw();
  }

  function storedTheme() {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  }

  async function copy() {
    const text = page?.asText() ?? "";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const box = h("textarea", { class: "unseen" });
      box.value = text;
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
    const button = document.getElementById("copy");
    button.textContent = "Copied";
    announce("Copied as text");
    setTimeout(() => (button.textContent = "Copy as text"), 1200);
  }

  function keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("dialog[open], textarea, input[type=text]")) return;
    const keys = {
      1: () => document.getElementById("to-runs").click(), 2: () => document.getElementById("to-tree").click(),
      3: () => document.getElementById("to-tokens").click(), c: copy, d: toggleTheme,
      "?": () => document.getElementById("help").showModal(),
    };
    if (keys[event.key]) keys[event.key]();
    else if (!page?.key(event)) return;
    event.preventDefault();
  }

  async function poll() {
    try {
      if (!document.hidden && (await Data.refresh())) {
        around();
        page?.update();
      }
    } catch (error) {
      main.replaceChildren(h("p", { class: "empty", role: "alert" }, Text.visible(error.message)));
    }
    setTimeout(poll, Data.runs.some((run) => run.live) ? EVERY_MS : 4 * EVERY_MS);
  }

  async function start() {
    setTheme(storedTheme() ?? Scales.theme());
    document.getElementById("theme").addEventListener("click", toggleTheme);
    document.getElementById("copy").addEventListener("click", copy);
    document.getElementById("skip").addEventListener("click", () => main.focus());
    document.getElementById("help-button").addEventListener("click", () => document.getElementById("help").showModal());
    document.addEventListener("keydown", keydown);
    addEventListener("hashchange", route);
    let resized;
    addEventListener("resize", () => {
      clearTimeout(resized);
      resized = setTimeout(redraw, 150);
    });
    try {
      await Data.refresh();
    } catch (error) {
      main.replaceChildren(h("p", { class: "empty", role: "alert" }, Text.visible(`Nothing can be shown: ${error.message}`)));
      return;
    }
    await route();
    if (!Data.exported) setTimeout(poll, EVERY_MS);
  }

  return { go, remember, announce, route, start };
})();

App.start();
