// The pages of the monitor: the list of runs, one run, several runs compared. Everything comes from this server; texts of a run are
// set as text, never as HTML.
"use strict";

const main = document.getElementById("main"), crumbs = document.getElementById("crumbs"), live = document.getElementById("live");
const EVERY = 5000;
let view = { update: async () => {} }, timer = 0, chosen = new Set();

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node && key !== "list") node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const bytes = (n) => (n === null || n === undefined ? "–" : n >= 1e9 ? (n / 1e9).toFixed(2) + " GB" : n >= 1e6 ? (n / 1e6).toFixed(1) + " MB" : Math.ceil(n / 1e3) + " kB");
const duration = (s) => (s === null || s === undefined ? "–" : s < 90 ? Math.round(s) + " s" : s < 5400 ? Math.round(s / 60) + " min" : s < 172800 ? (s / 3600).toFixed(1) + " h" : Math.round(s / 86400) + " d");
const ago = (s) => (s === null || s === undefined ? "–" : duration(s) + " ago");
const badge = (state) => el("span", { className: "badge " + state }, state);
const runLink = (id) => "#/run/" + encodeURIComponent(id);
const address = (path, query) => path + "?" + new URLSearchParams(query);

async function ask(path) {
  const reply = await fetch(path, { cache: "no-store" });
  if (!reply.ok) throw new Error((await reply.text()).trim());
  return reply.json();
}

// columns: [title, kind] with kind "number", "wide" or ""
function table(columns, rows, name, className = "") {
  const head = el("tr", {}, ...columns.map(([title, kind]) => el("th", { className: kind, scope: "col" }, title)));
  const body = rows.map((row) => el("tr", { className: row.late ? "late" : "" },
    ...row.cells.map((cell, at) => el("td", { className: columns[at][1], "data-label": columns[at][0] }, cell instanceof Node ? cell : String(cell ?? "–")))));
  return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": name }, el("table", { className }, el("thead", {}, head), el("tbody", {}, ...body)));
}

// Rebuilds a section only when what it shows has changed, so that videos play on and open details stay open.
class Sections {
  constructor(parent) { this.parent = parent; this.known = new Map(); }
  set(name, value, build) {
    const text = JSON.stringify(value), known = this.known.get(name);
    if (known && known.text === text) return;
    const open = known ? [...known.node.querySelectorAll("details[open]")].map((node) => node.dataset.key) : [];
    const node = build(value) ?? el("div", { hidden: true });
    for (const each of node.querySelectorAll("details")) if (open.includes(each.dataset.key)) each.open = true;
    if (known) known.node.replaceWith(node); else this.parent.append(node);
    this.known.set(name, { text, node });
  }
}
const section = (title, ...children) => el("section", { "aria-label": title }, el("h2", {}, title), ...children);
const problems = (lines) => (lines.length ? el("section", { className: "problems", role: "alert" }, el("h2", {}, "Problems"), el("ul", {}, ...lines.map((line) => el("li", {}, line)))) : null);

class Charts {
  constructor(parent, fetchCharts, onData = () => {}) {
    Object.assign(this, { fetchCharts, onData, boxes: new Map(), begin: null, end: null });
    this.reset = el("button", { type: "button", disabled: true, onclick: () => this.zoom(null, null) }, "Show all steps");
    this.note = el("span", { className: "muted small" }, "Drag over a chart to zoom in; double-click shows all. By keyboard: Tab to a chart, arrows, + − 0.");
    this.grid = el("div", { className: "charts" });
    parent.append(el("div", { className: "bar" }, this.reset, this.note), this.grid);
  }
  zoom(begin, end) { this.begin = begin; this.end = end; this.reset.disabled = begin === null; this.update(); }
  async update() {
    const range = this.begin === null ? {} : { begin: this.begin, end: this.end };
    const mine = (this.turn = (this.turn || 0) + 1);
    const charts = await this.fetchCharts({ width: Math.min(400, Math.max(160, Math.round(innerWidth / 4))), ...range });
    if (mine !== this.turn || !this.grid.isConnected) return;
    for (const chart of charts) {
      if (!this.boxes.has(chart.name)) this.boxes.set(chart.name, new ChartBox(this.grid, (begin, end) => this.zoom(begin, end)));
      this.boxes.get(chart.name).set(chart);
    }
    this.onData(charts);
  }
}

// ---- the list of runs ------------------------------------------------------------------------------------------------------------
function listPage() {
  crumbs.textContent = "";
  const sections = new Sections(main);
  const compare = el("button", { type: "button", disabled: chosen.size < 2, onclick: () => { location.hash = "#/compare/" + [...chosen].map(encodeURIComponent).join(","); } }, "Compare the ticked runs");
  return { update: async () => {
    const found = await ask("/api/runs");
    sections.set("problems", found.problems, problems);
    sections.set("runs", found.runs, (runs) => {
      if (!runs.length) return section("No runs yet", el("p", {}, "Looked in: " + found.looked_in.join(", ")), el("p", { className: "muted" }, "A run appears here as soon as its job has written a line."));
      const rows = runs.map((run) => {
        const tick = el("input", { type: "checkbox", checked: chosen.has(run.id), "aria-label": "compare " + run.id, disabled: run.id.startsWith("prometheus:"),
          onchange: (event) => { event.target.checked ? chosen.add(run.id) : chosen.delete(run.id); compare.disabled = chosen.size < 2; } });
        return { cells: [tick, el("a", { href: runLink(run.id), title: run.folder }, run.id), badge(run.state), run.step === null || run.step === undefined ? "–" : shown(run.step) + (run.steps ? " of " + shown(run.steps) : ""),
          shown(run.loss), shown(run.tokens_per_second), duration(run.left_seconds), ago(run.age)] };
      });
      return section("Runs", table([["compare", ""], ["run", "wide"], ["state", ""], ["step", "number"], ["loss", "number"], ["tokens/s", "number"], ["left", "number"], ["last line", "number"]], rows, "Runs", "runs"), el("div", { className: "bar" }, compare));
    });
  } };
}

// ---- one run ---------------------------------------------------------------------------------------------------------------------
function runPage(id) {
  crumbs.textContent = "› " + id;
  document.title = id + " · VideoAR";
  const top = el("div"), middle = el("div"), below = el("div");
  main.append(top, middle, below);
  const head = new Sections(top), rest = new Sections(below);
  const charts = new Charts(middle, (query) => ask(address("/api/charts", { run: id, ...query })));
  return { update: async () => {
    const [run] = await Promise.all([ask(address("/api/run", { run: id })), charts.update()]);
    head.set("title", [run.state, run.line, run.folder], () => el("div", {}, el("h1", {}, id + " ", badge(run.state)), el("div", { className: "muted small" }, run.folder), run.line ? el("p", {}, run.line) : null));
    head.set("problems", run.problems, problems);
    const cards = [["step", run.step === null || run.step === undefined ? "–" : shown(run.step) + (run.steps ? " of " + shown(run.steps) : "")], ["loss", shown(run.loss)], ["tokens per second", shown(run.tokens_per_second)],
      ["seconds per step", shown(run.step_seconds)], ["time left", duration(run.left_seconds)], ["last line", ago(run.age)]];
    if (run.read < 1) cards.push(["history read", Math.floor(100 * run.read) + " %"]);
    head.set("cards", cards, () => el("div", { className: "cards" }, ...cards.map(([label, value]) => el("div", { className: "card" }, el("span", {}, label), el("b", {}, value)))));
    rest.set("samples", run.samples, (groups) => groups.length ? section("Samples and reconstructions", ...groups.map((group) => samples(id, group))) : null);
    run.shards.forEach((shards, number) => rest.set("shards" + number, { ...shards, commits: shards.commits.length }, () => shardSection(id, shards, number)));
    rest.set("ranks", run.ranks, ranks);
    rest.set("checkpoints", run.checkpoints, (rows) => rows.length ? section("Checkpoints", table([["step", "number"], ["of", ""], ["written", ""], ["size", "number"], ["state", "wide"]],
      rows.map((row) => ({ late: row.state !== "sound", cells: [row.step, row.kind, row.time ? new Date(1000 * row.time).toLocaleString() : "–", bytes(row.bytes), row.state] })), "Checkpoints"),
      run.aside.length ? el("p", { className: "muted small" }, "Set aside, never used: " + run.aside.join(", ")) : null) : null);
    rest.set("starts", run.starts, starts);
    rest.set("values", run.values ?? [], (rows) => rows.length ? section("Present values", table([["metric", ""], ["of", "wide"], ["value", "number"]], rows.map((row) => ({ cells: [row.name, row.labels, shown(row.value)] })), "Present values")) : null);
    rest.set("logs", run.logs.map((log) => log.path), (paths) => paths.length ? section("Logs", ...paths.map((path) => logDetails(id, path))) : null);
    rest.set("config", run.config, (text) => text ? section("Configuration", el("details", { "data-key": "config" }, el("summary", {}, "config.yaml, all keys"), el("pre", { tabIndex: 0 }, text))) : null);
  } };
}

function samples(id, group) {
  return el("div", {}, el("h3", {}, group.title), el("div", { className: "clips" }, ...group.clips.map((clip) => el("figure", {},
    el("video", { src: address("/media", { run: id, path: clip.path }), controls: true, loop: true, muted: true, playsInline: true, preload: "auto", autoplay: !matchMedia("(prefers-reduced-motion: reduce)").matches, "aria-label": clip.text }), el("figcaption", {}, clip.text)))));
}

function shardSection(id, shards, number) {
  const share = shards.planned ? shards.committed / shards.planned : shards.finished ? 1 : 0;
  const said = shards.planned ? `${shards.committed} of ${shards.planned} shards committed (${(100 * share).toFixed(1)} %)` : `${shards.committed} shards committed; ${shards.planned_parts} parts of the plan are written`;
  const holder = el("div");
  const rejected = shards.rejects.reduce((sum, row) => sum + row.count, 0);
  const details = el("details", { "data-key": "rejects" + number }, el("summary", {}, "Thumbnails of what was refused"), holder);
  details.ontoggle = async () => {
    if (!details.open || holder.firstChild) return;
    holder.append(el("p", { className: "muted" }, "Reading the videos…"));
    const reply = await fetch(address("/rejects", { run: id, number }));
    const text = await reply.text();
    holder.replaceChildren(...(reply.ok ? thumbnails(text) : [el("p", {}, text)]));
  };
  const node = section("Tokenization" + (shards.finished ? ", finished" : ""), el("p", { className: "small muted" }, shards.folder), el("progress", { max: 1, value: share, "aria-label": said }), el("p", {}, said, shards.clips === null ? "" : `; ${shown(shards.clips)} clips planned`, shards.shards_per_minute ? `; ${shards.shards_per_minute} shards a minute` : ""));
  if (shards.commits.length) {
    new ChartBox(node, () => {}).set({ name: "commits" + number, title: "Shards committed", unit: "", time: true, x: shards.commits.map((row) => row[0]), curves: [["shards", shards.commits.map((row) => row[1])]] });
  }
  if (rejected) node.append(el("h3", {}, `Refused: ${rejected} videos and spans`), table([["stage", ""], ["reason", "wide"], ["count", "number"]], shards.rejects.map((row) => ({ cells: [row.stage, row.reason, row.count] })), "Refusals"), details);
  return node;
}

// The page of refusals as nodes of our own: its texts, and its pictures if they are inside of it.
function thumbnails(text) {
  return [...new DOMParser().parseFromString(text, "text/html").querySelectorAll("h2, figure, p")].map((node) => {
    if (node.tagName !== "FIGURE") return el(node.tagName === "H2" ? "h3" : "p", {}, node.textContent);
    const source = node.querySelector("img")?.getAttribute("src") ?? "";
    const picture = source.startsWith("data:image/jpeg;base64,") ? el("img", { src: source, alt: "", width: 160, height: 90 }) : el("div", { className: "none" }, "no picture");
    const words = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE).map((child) => child.textContent).join(", ");
    return el("figure", { className: "refused", title: node.title }, picture, el("figcaption", {}, words));
  });
}

function ranks(rows) {
  if (!rows.length) return null;
  const keys = [...new Set(rows.flatMap(Object.keys))].filter((key) => key !== "rank" && key !== "host");
  // A straggler: a value of this rank that is twice the median of all, where all have one.
  const median = Object.fromEntries(keys.map((key) => [key, rows.map((row) => row[key]).filter(Number.isFinite).sort((a, b) => a - b)[Math.floor(rows.length / 2)]]));
  const late = (row) => rows.length > 1 && keys.some((key) => /age|seconds/.test(key) && row[key] > 2 * median[key] && row[key] - median[key] > (/age/.test(key) ? 15 : 0.05));
  return section("Ranks", table([["rank", "number"], ["host", "wide"], ...keys.map((key) => [key.replaceAll("_", " "), "number"])],
    rows.map((row) => ({ late: late(row), cells: [row.rank, row.host, ...keys.map((key) => (typeof row[key] === "string" ? row[key] : shown(row[key])))] })), "Ranks"),
    el("p", { className: "muted small" }, "Red: twice the median of all ranks or more."));
}

function starts(rows) {
  if (!rows.length) return null;
  return section(`Starts: ${rows.length}`, table([["", "number"], ["from step", "number"], ["restarts before", "number"], ["hosts", "wide"], ["code", ""], ["data", ""], ["configuration", ""], ["packages", "wide"], ["dtype", "wide"]],
    rows.map((row, at) => ({ cells: [at + 1, row.resumed_from, row.restarts, hosts(row.hosts ?? []), (row.commit || row.code_digest || "–").slice(0, 12), (row.data_digest ?? "–").slice(0, 12), (row.config_digest ?? "–").slice(0, 12),
      Object.entries(row.packages ?? {}).map(([name, version]) => name + " " + version).join(", "), row.dtype || "–"] })), "Starts"));
}

function hosts(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${name} × ${count}`).join(", ") || "–";
}

function logDetails(id, path) {
  const text = el("pre", { tabIndex: 0 }), reload = el("button", { type: "button" }, "Read again");
  const node = el("details", { "data-key": path }, el("summary", {}, path), reload, text);
  const read = async () => { const reply = await fetch(address("/log", { run: id, path })); text.textContent = await reply.text(); text.scrollTop = text.scrollHeight; };
  node.ontoggle = () => { if (node.open) read(); };
  reload.onclick = read;
  return node;
}

// ---- several runs ----------------------------------------------------------------------------------------------------------------
function comparePage(ids) {
  crumbs.textContent = "› compare";
  const head = new Sections(main), titles = { loss: ["Loss", "nats per bit"], tokens_per_second: ["Throughput, all ranks", "tokens/s"], grad_norm: ["Gradient norm", ""] };
  main.append(el("h1", {}, "Compare " + ids.join(", ")));
  const middle = el("div"), below = el("div");
  main.append(middle, below);
  const rest = new Sections(below);
  const charts = new Charts(middle, async (query) => {
    const search = new URLSearchParams(query);
    ids.forEach((id) => search.append("run", id));
    const found = await ask("/api/compare?" + search);
    head.set("problems", found.problems, problems);
    rest.set("settings", found.settings, (rows) => section("Settings that differ", rows.length ? table([["key", "wide"], ...found.ids.map((id) => [id, "wide"])], rows.map((row) => ({ cells: [row.key, ...row.values] })), "Settings") : el("p", {}, "None.")));
    return found.charts.filter((chart) => chart.runs.length).map((chart) => {
      const joined = uPlot.join(chart.runs.map((run) => [...thinned(run.x, run.curves[0][1])]));
      return { name: chart.name, title: titles[chart.name][0], unit: titles[chart.name][1], time: false, x: joined[0], curves: chart.runs.map((run, at) => [run.id, joined[at + 1].map((value) => value ?? null)]) };
    });
  });
  return { update: () => charts.update() };
}

// Joining needs each x once; two points of one bin may share it.
function thinned(x, y) {
  const kept = new Map();
  x.forEach((step, at) => kept.set(step, y[at]));
  return [[...kept.keys()], [...kept.values()]];
}

// ---- where we are ----------------------------------------------------------------------------------------------------------------
function route() {
  const [page, ...words] = location.hash.replace(/^#\/?/, "").split("/");
  main.replaceChildren();
  document.title = "VideoAR runs";
  const name = words.join("/");
  if (page === "run") view = runPage(decodeURIComponent(name));
  else if (page === "compare") view = comparePage(name.split(",").map(decodeURIComponent));
  else view = listPage();
  tick();
}

async function tick() {
  clearTimeout(timer);
  const mine = view;
  if (!document.hidden) {
    try {
      await mine.update();
      live.className = "";
      live.textContent = "as of " + new Date().toLocaleTimeString();
      document.body.dataset.ready = "yes";
    } catch (error) {
      live.className = "lost";
      live.textContent = error instanceof TypeError ? "the monitor does not answer" : error.message;
    }
  }
  if (mine === view) timer = setTimeout(tick, EVERY);
}

addEventListener("hashchange", () => { if (location.hash.startsWith("#/") || location.hash === "") { route(); main.focus({ preventScroll: true }); scrollTo(0, 0); } });
addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", route);
route();
