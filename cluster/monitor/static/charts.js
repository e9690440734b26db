// Charts of the monitor, drawn by uPlot: zoom by dragging or by keys, a legend with the values under the cursor.
"use strict";

const COLORS = ["#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#be185d", "#65a30d", "#64748b", "#b45309", "#4f46e5", "#0d9488", "#e11d48", "#7c3aed", "#ca8a04", "#0284c7"];
const FEW = 60; // with fewer points than this, each is a dot: a curve of one point is seen

function shown(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

function lastOf(values) {
  for (let at = values.length - 1; at >= 0; at--) if (values[at] !== null) return values[at];
  return null;
}

class ChartBox {
  // onZoom(begin, end): the user asks for a range of x; onZoom(null, null): for all.
  constructor(parent, onZoom) {
    this.onZoom = onZoom;
    this.log = false;
    this.box = document.createElement("div");
    this.box.className = "chart";
    this.box.innerHTML = '<div class="head"><h3></h3><button type="button" aria-pressed="false">log</button></div><div class="plot" tabindex="0" role="img"></div>';
    [this.title, this.button, this.plotBox] = [this.box.querySelector("h3"), this.box.querySelector("button"), this.box.querySelector(".plot")];
    this.button.onclick = () => { this.log = !this.log; this.button.setAttribute("aria-pressed", this.log); this.draw(); };
    this.plotBox.onkeydown = (event) => this.key(event);
    parent.append(this.box);
    new ResizeObserver(() => this.plot && this.plot.setSize(this.size())).observe(this.box);
  }

  size() { return { width: Math.max(240, this.plotBox.clientWidth), height: this.box.clientWidth < 460 ? 210 : 240 }; }

  set(chart) {
    const shape = JSON.stringify([chart.name, chart.curves.map((curve) => curve[0])]);
    const same = this.plot && shape === this.shape;
    this.chart = chart;
    this.shape = shape;
    this.describe();
    if (same) this.plot.setData(this.data()); else this.draw();
  }

  data() {
    const clean = (values) => (this.log ? values.map((value) => (value > 0 ? value : null)) : values);
    return [this.chart.x, ...this.chart.curves.map((curve) => clean(curve[1]))];
  }

  describe() {
    const { title, unit, curves, x, name } = this.chart;
    this.box.dataset.chart = name;
    this.box.dataset.points = curves.reduce((sum, curve) => sum + curve[1].filter((value) => value !== null).length, 0);
    this.box.dataset.begin = x[0];
    this.title.textContent = title;
    if (unit) { const span = document.createElement("span"); span.className = "unit"; span.textContent = " · " + unit; this.title.append(span); }
    const ends = curves.map((curve) => `${curve[0]} ${shown(lastOf(curve[1]))}`).join(", ");
    this.plotBox.setAttribute("aria-label", `${title}${unit ? ", " + unit : ""}: ${x.length} points; last values: ${ends}. Arrow keys move the cursor, plus and minus zoom, 0 shows all.`);
    this.button.setAttribute("aria-label", `${title}: logarithmic`);
  }

  draw() {
    if (this.plot) this.plot.destroy();
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = [style.getPropertyValue("--soft").trim(), style.getPropertyValue("--line").trim()];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui" };
    const dots = this.chart.x.length < FEW;
    const series = this.chart.curves.map((curve, number) => ({
      label: curve[0], stroke: COLORS[number % COLORS.length], width: 1.5, spanGaps: true,
      points: dots ? { show: true, size: 5 } : { show: false }, value: (plot, value) => shown(value),
    }));
    const xs = this.chart.x.filter((value) => value !== null);
    const single = xs.length > 0 && xs[0] === xs[xs.length - 1];
    this.plot = new uPlot({
      ...this.size(),
      cursor: { drag: { x: true, y: false, setScale: false }, sync: this.chart.time ? undefined : { key: "steps", scales: ["x", null] } },
      scales: { x: single ? { time: this.chart.time, range: [xs[0] - 1, xs[0] + 1] } : { time: this.chart.time }, y: { distr: this.log ? 3 : 1 } },
      axes: [axis, { ...axis, size: 62, values: (plot, ticks) => ticks.map((tick) => (tick === null ? "" : shown(tick))) }],
      series: [{ label: this.chart.time ? "time" : "step", ...(this.chart.time ? {} : { value: (plot, value) => shown(value) }) }, ...series],
      hooks: { setSelect: [(plot) => {
        if (plot.select.width < 4) return;
        const [begin, end] = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        this.onZoom(begin, end);
      }] },
    }, this.data(), this.plotBox);
    this.plot.over.ondblclick = () => this.onZoom(null, null);
  }

  key(event) {
    const plot = this.plot;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [low, high] = [plot.scales.x.min, plot.scales.x.max];
    const at = plot.cursor.idx ?? plot.data[0].length - 1;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const jump = (event.shiftKey ? 10 : 1) * (event.key === "ArrowLeft" ? -1 : 1);
      const next = Math.min(plot.data[0].length - 1, Math.max(0, at + jump));
      plot.setCursor({ left: plot.valToPos(plot.data[0][next], "x"), top: plot.over.clientHeight / 2 });
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const middle = plot.data[0][at], half = (high - low) * (event.key === "-" ? 1 : 0.25);
      this.onZoom(middle - half, middle + half);
    } else if (event.key === "0" || event.key === "Escape") this.onZoom(null, null);
    else return;
    event.preventDefault();
  }
}
