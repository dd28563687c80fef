// The page of the live view. `uPlot` is prepended to this file. Set text from the kernel as text, never as HTML.

// The line of each exchange, the same in every view. All colours are readable on white and on black.
const COLOURS = {
  BINANCE: "#b88a00", COINBASE: "#2f7de1", KRAKEN: "#8f6ee6", FTX: "#0f9a9a", BITSTAMP: "#2e9e4f", BITFINEX: "#6f8a1e",
  GEMINI: "#6d8299", HUOBI: "#d43f8d", KUCOIN: "#a0704a", OKEX: "#e0662b", BYBIT: "#d9423a", DERIBIT: "#b45fc4",
};
// Other exchanges get one of these colours and dashes by their name, so they never look like one of the table.
const DASHES = [[6, 3], [2, 2]];
const SPARK = "#4c8dd6";
// The smiles of an underlying, in order of their expiries.
const SMILES = ["#2f7de1", "#e0662b", "#2e9e4f", "#8f6ee6", "#d43f8d", "#0f9a9a"];
// The columns of a chain: as CALLS and PUTS in chains.py, with the strike in the middle.
const CHAIN = ["IV %", "delta", "bid", "ask", "strike", "bid", "ask", "delta", "IV %"];
// Milliseconds between two messages that say that the view is visible.
const VISIBLE_EVERY = 2000;
// Milliseconds without a message after which the view reports that there is no data.
const QUIET_AFTER = 3000;
// Milliseconds to wait for an answer to a message before repeating it on the control channel.
const ANSWER_WITHIN = 400;
// The highest number of points in a chart.
const ROWS_KEPT = 9000;
// The height of a chart, and of the volatility smiles, in pixels.
const HEIGHT = 200;
const SMILE_HEIGHT = 320;
// Seconds between two labels of the time axis.
const TIME_STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 172800, 604800, 2592000];
// The times that a chart of lines can show.
const SPANS = [["15 s", 15], ["1 min", 60], ["5 min", 300], ["10 min", 600]];
// The numbers of candles that a chart can show, the highest number in a chart, and their colours.
const CANDLES_SHOWN = [30, 60, 120, 300];
const CANDLES_KEPT = 1000;
const RISING = "#2e9e4f";
const FALLING = "#d9423a";
// The least time shown, in seconds.
const SHORTEST = 5;
const ENDED = ["stopped", "failed"];

function element(name, props = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// A list to select from. JupyterLab has other uses for its keys.
function selection(label) {
  const made = element("select", { "aria-label": label });
  made.addEventListener("keydown", (event) => event.stopPropagation());
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const formats = new Map();

// A number with thousands separators and this many decimals, as `price_text` in text.py formats it.
function fixed(number, digits) {
  if (!formats.has(digits)) {
    formats.set(digits, new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return formats.get(digits).format(number);
}

// The decimals that the labels of an axis need: a step of 0.25 needs two, 50 needs none.
function stepDigits(step) {
  const [mantissa, exponent] = step.toExponential(1).split("e");
  return Math.min(20, Math.max(0, (mantissa.endsWith(".0") ? 0 : 1) - Number(exponent)));
}

const plainNumber = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 12 });
const whole = (n) => fixed(n, 0);
const seconds = (s) => (s < 0.9995 ? `${Math.round(s * 1000)} ms` : s < 99.95 ? `${s.toFixed(1)} s` : `${whole(s / 60)} min`);
// Rounded to milliseconds, because dates cut off the rest: 0.3 s would become 0.299.
const iso = (t) => new Date(Math.round(t * 1000)).toISOString();
const clock = (t) => iso(t).slice(11, 23);

// What all axes have in common. `host` has the text's colour.
function axisStyle(host) {
  const grid = { stroke: "rgba(128,128,128,0.22)", width: 1 };
  return { stroke: () => getComputedStyle(host).color, grid, ticks: grid, font: "11px system-ui, sans-serif" };
}

// The colour and the dash of an exchange's line.
function lineStyle(exchange) {
  if (Object.hasOwn(COLOURS, exchange)) return { stroke: COLOURS[exchange] };
  // FNV-1a.
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(exchange)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  const colours = Object.values(COLOURS);
  return { stroke: colours[hash % colours.length], dash: DASHES[(hash >>> 8) % DASHES.length] };
}

// The chart of one pair, with a line for each exchange.
class PairChart {
  // `spans` are the times that can be shown: texts and seconds. `span` is the one shown first.
  constructor(pair, host, spans = SPANS, span = 60) {
    this.pair = pair;
    this.exchanges = [];
    this.data = [[]];
    // The decimals of the prices in the legend.
    this.digits = 0;
    // The widths of the price axis, in pixels, and of the legend's prices, in characters. They only grow.
    this.axisWidth = 50;
    this.legendWidth = 0;
    this.span = span;
    this.longest = Math.max(...spans.map(([, value]) => value));
    this.shortest = SHORTEST;
    // What a point needs to its left and right, in seconds.
    this.margin = 0;
    this.follow = true;
    this.box = element("section", { class: "chart", tabindex: "0", role: "group" });
    this.box.setAttribute("aria-label", `chart of ${pair}; plus and minus zoom, arrows move, f follows`);
    const button = (text, label, act) => {
      const made = element("button", { type: "button", text, "aria-label": label, title: label });
      made.addEventListener("click", act);
      return made;
    };
    this.followButton = button("follow", "follow the newest ticks", () => this.setFollow(!this.follow));
    this.select = selection("how much time is shown");
    for (const [text, value] of spans) this.select.append(element("option", { value, text }));
    this.select.value = String(span);
    this.select.addEventListener("change", () => { this.span = Number(this.select.value); this.setFollow(true); });
    this.box.append(
      element("div", { class: "bar" }, element("b", { text: pair }), this.followButton, this.select,
        button("+", "zoom in", () => this.zoom(0.5)), button("−", "zoom out", () => this.zoom(2))),
    );
    this.plotHost = element("div");
    this.box.append(this.plotHost);
    this.box.addEventListener("keydown", (event) => this.key(event));
    host.append(this.box);
    this.resizer = new ResizeObserver(() => this.resize());
    this.resizer.observe(this.box);
    this.setFollow(true);
  }

  // Show a full history. A chart that is already drawn keeps its zoom.
  load(full) {
    this.digits = full.digits;
    this.data = [full.x.slice(), ...full.y.map((line) => line.slice())];
    if (this.plot && this.exchanges.every((exchange, i) => exchange === full.exchanges[i])) {
      this.addLines(full.exchanges);
    } else {
      this.exchanges = full.exchanges.slice();
      this.build();
    }
    this.dirty = true;
  }

  add(at, points) {
    this.digits = points.digits;
    this.addLines(points.exchanges);
    const x = this.data[0];
    while (this.data.length <= this.exchanges.length) this.data.push(new Array(x.length).fill(null));
    x.push(x.length && at <= x[x.length - 1] ? x[x.length - 1] + 1e-6 : at);
    for (let i = 1; i < this.data.length; i++) this.data[i].push(points.y[i - 1] ?? null);
    if (x.length > ROWS_KEPT) for (const column of this.data) column.splice(0, 1000);
    this.dirty = true;
  }

  addLines(exchanges) {
    if (exchanges.length === this.exchanges.length) return;
    for (const exchange of exchanges.slice(this.exchanges.length)) {
      this.exchanges.push(exchange);
      this.plot.addSeries(this.line(exchange));
    }
    this.sortLegend();
  }

  // Sort the exchanges by name, so that all charts show them in the same order.
  sortLegend() {
    const places = [...this.exchanges].sort();
    const rows = this.box.querySelectorAll(".u-legend .u-series:not(.time)");
    this.exchanges.forEach((exchange, i) => { rows[i].style.order = places.indexOf(exchange); });
  }

  line(exchange) {
    return {
      ...lineStyle(exchange), label: exchange, width: 1.4, spanGaps: true, points: { show: false },
      value: (_, __, i, at) => this.legendText(this.data[i], at),
    };
  }

  lines() { return this.exchanges.map((exchange) => this.line(exchange)); }

  drawOver() {}

  // The last price until the cursor, or the last one of all.
  legendText(prices = [], at) {
    let i = at ?? prices.length - 1;
    while (i >= 0 && prices[i] == null) i--;
    const text = i < 0 ? "-" : fixed(prices[i], this.digits);
    if (text.length > this.legendWidth) {
      this.legendWidth = text.length;
      this.box.style.setProperty("--legend-width", `${text.length}ch`);
    }
    return text;
  }

  axisSize(labels) {
    const longest = Math.max(0, ...(labels ?? []).map((label) => label.length));
    this.axisWidth = Math.max(this.axisWidth, 20 + 7 * longest);
    return this.axisWidth;
  }

  build() {
    const range = this.plot ? [this.plot.scales.x.min, this.plot.scales.x.max] : null;
    if (this.plot) this.plot.destroy();
    const axis = axisStyle(this.plotHost);
    const timeText = (t, step) => (step < 86400 ? clock(t).slice(0, step < 1 ? 10 : step < 60 ? 8 : 5) : iso(t).slice(5, 10));
    const options = {
      width: this.width(), height: HEIGHT,
      cursor: { drag: { x: true, y: false, setScale: false } },
      // Not uPlot's time axis: its labels aren't round below a minute, and depend on the time zone.
      scales: { x: { time: false } },
      axes: [
        {
          ...axis, size: 30, space: 70, incrs: TIME_STEPS,
          values: (_, ticks, __, ___, step) => ticks.map((t) => timeText(t, step)),
        },
        {
          ...axis, size: (_, labels) => this.axisSize(labels),
          values: (_, ticks, __, ___, step) => ticks.map((price) => fixed(price, stepDigits(step))),
        },
      ],
      series: [
        { label: "time (UTC)", class: "time", value: (_, __, ___, at) => this.timeText(at) },
        ...this.lines(),
      ],
      legend: { markers: { dash: (plot, i) => ({ 6: "dashed", 2: "dotted" })[plot.series[i].dash?.[0]] ?? "solid" } },
      hooks: {
        draw: [(plot) => this.drawOver(plot)],
        setSelect: [(plot) => {
          if (plot.select.width < 4) return;
          const from = plot.posToVal(plot.select.left, "x");
          const to = plot.posToVal(plot.select.left + plot.select.width, "x");
          this.setFollow(false);
          plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          plot.setScale("x", { min: from, max: to });
        }],
      },
    };
    this.plot = new uPlot(options, this.data, this.plotHost);
    this.plot.over.addEventListener("dblclick", () => this.setFollow(true));
    if (range && !this.follow) this.plot.setScale("x", { min: range[0], max: range[1] });
    this.sortLegend();
  }

  timeText(at) {
    const times = this.data[0];
    return times.length ? clock(times[at ?? times.length - 1]) : "-";
  }

  width() { return Math.max(220, this.box.clientWidth || 700); }

  resize() {
    const width = this.width();
    if (this.plot && this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
  }

  setFollow(follow) {
    this.follow = follow;
    this.followButton.setAttribute("aria-pressed", String(follow));
    this.dirty = true;
  }

  draw(now) {
    if (!this.plot || !this.dirty) return;
    this.dirty = false;
    const x = this.data[0];
    const last = x.length ? x[x.length - 1] : now;
    // The window starts with the data, and grows until it has the chosen length.
    const first = Math.max(x.length ? x[0] : now, last - this.span);
    const shortest = Math.min(this.shortest, this.span);
    const newest = { min: first - this.margin, max: Math.max(last, first + shortest) + this.margin };
    const view = this.follow ? newest : { ...this.plot.scales.x };
    this.plot.batch(() => {
      this.plot.setData(this.data, false);
      this.plot.setScale("x", { min: view.min, max: view.max });
    });
    this.plot.setLegend({ idx: this.plot.cursor.idx }, false);
  }

  zoom(factor) {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    const middle = this.follow ? max : (min + max) / 2;
    const half = Math.max(0.25, ((max - min) * factor) / 2);
    if (this.follow) {
      this.span = Math.min(this.longest, half * 2);
      this.dirty = true;
      this.draw(max);
    } else {
      this.plot.setScale("x", { min: middle - half, max: middle + half });
    }
  }

  move(share) {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    this.setFollow(false);
    const by = (max - min) * share;
    this.plot.setScale("x", { min: min + by, max: max + by });
  }

  key(event) {
    const act = {
      "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2),
      ArrowLeft: () => this.move(-0.25), ArrowRight: () => this.move(0.25), f: () => this.setFollow(true),
    }[event.key];
    if (!act || event.target !== this.box || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  remove() {
    this.resizer.disconnect();
    if (this.plot) this.plot.destroy();
    this.box.remove();
  }
}

// The chart of one pair, with a candle for each bar of `seconds`. A candle is at the middle of its bar.
class CandleChart extends PairChart {
  constructor(pair, host, seconds) {
    super(pair, host, CANDLES_SHOWN.map((count) => [`${count} bars`, count * seconds]), CANDLES_SHOWN[1] * seconds);
    this.seconds = seconds;
    this.margin = seconds / 2;
    this.shortest = CANDLES_SHOWN[0] * seconds;
    this.data = [[], [], [], [], []];
    this.box.classList.add("candles");
  }

  load(full) {
    this.digits = full.digits;
    this.data = [0, 1, 2, 3, 4].map((i) => full.candles.map((candle) => candle[i]));
    this.data[0] = this.data[0].map((start) => start + this.seconds / 2);
    if (!this.plot) this.build();
    this.dirty = true;
  }

  // Replace some candles, or add them in their places.
  add(_, points) {
    this.digits = points.digits;
    const x = this.data[0];
    for (const candle of points.candles) {
      const values = [candle[0] + this.seconds / 2, ...candle.slice(1)];
      let i = x.length;
      while (i > 0 && x[i - 1] >= values[0]) i--;
      const replaced = x[i] === values[0] ? 1 : 0;
      this.data.forEach((column, n) => column.splice(i, replaced, values[n]));
      if (x.length > CANDLES_KEPT) for (const column of this.data) column.shift();
    }
    this.dirty = true;
  }

  lines() {
    const value = (_, __, i, at) => this.legendText(this.data[i], at);
    return ["open", "high", "low", "close"].map((label) => ({ label, value, paths: () => null, points: { show: false } }));
  }

  sortLegend() {}

  timeText(at) {
    const times = this.data[0];
    if (!times.length) return "-";
    const start = times[at ?? times.length - 1] - this.seconds / 2;
    return this.seconds < 3600 ? clock(start).slice(0, 8) : iso(start).slice(0, 16).replace("T", " ");
  }

  // Rising candles are hollow, falling ones are filled: you can tell them apart without colours.
  drawOver(plot) {
    const [x, open, high, low, close] = this.data;
    const { left, top, width, height } = plot.bbox;
    const scale = window.devicePixelRatio || 1;
    const at = (value, axis) => Math.round(plot.valToPos(value, axis, true));
    const body = Math.max(1, Math.floor(0.35 * (at(this.seconds, "x") - at(0, "x"))));
    const pen = plot.ctx;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width, height);
    pen.clip();
    pen.lineWidth = Math.max(1, Math.round(scale));
    // Otherwise a line of one pixel would be spread over two.
    pen.translate((pen.lineWidth % 2) / 2, (pen.lineWidth % 2) / 2);
    const { min, max } = plot.scales.x;
    x.forEach((middle, i) => {
      if (middle < min - this.seconds || middle > max + this.seconds) return;
      const rises = close[i] >= open[i];
      pen.strokeStyle = pen.fillStyle = rises ? RISING : FALLING;
      const centre = at(middle, "x");
      const upper = at(Math.max(open[i], close[i]), "y");
      const lower = at(Math.min(open[i], close[i]), "y");
      pen.beginPath();
      pen.moveTo(centre, at(high[i], "y"));
      pen.lineTo(centre, upper);
      pen.moveTo(centre, lower);
      pen.lineTo(centre, at(low[i], "y"));
      pen.stroke();
      const box = [centre - body, upper, 2 * body, lower - upper];
      if (!rises) pen.fillRect(...box);
      pen.strokeRect(...box);
    });
    pen.restore();
  }
}

// The volatility smiles of one underlying: implied volatility by strike, with a line for each expiry.
class SmileChart {
  constructor(host) {
    this.lines = {};
    this.names = [];
    this.zoomed = false;
    this.title = element("b");
    this.plotHost = element("div");
    this.box = element("section", { class: "chart smile", role: "group" },
      element("div", { class: "bar" }, this.title), this.plotHost);
    host.append(this.box);
    this.resizer = new ResizeObserver(() => {
      if (this.plot && this.plot.width !== this.width()) this.plot.setSize({ width: this.width(), height: SMILE_HEIGHT });
    });
    this.resizer.observe(this.box);
  }

  width() { return Math.max(220, this.box.clientWidth || 500); }

  // Show these smiles and no others. The same ones keep their zoom.
  load(underlying, lines) {
    const same = Object.keys(lines).join() === this.names.join();
    this.lines = lines;
    this.names = Object.keys(lines);
    setText(this.title, `implied volatility of ${underlying}`);
    this.box.setAttribute("aria-label", `implied volatility of ${underlying} by strike`);
    if (!same) this.build();
  }

  // Replace some of the smiles, and the forward of the chosen expiry.
  update(lines, forward) {
    Object.assign(this.lines, lines);
    this.forward = forward;
    this.dirty = true;
  }

  // The strikes of all smiles, and for each smile a column of volatilities.
  columns() {
    return uPlot.join(this.names.map((name) => [this.lines[name].x, this.lines[name].y]));
  }

  build() {
    this.plot?.destroy();
    this.zoomed = false;
    const axis = axisStyle(this.plotHost);
    const options = {
      width: this.width(), height: SMILE_HEIGHT,
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, size: 30, space: 60, values: (_, ticks, __, ___, step) => ticks.map((k) => fixed(k, stepDigits(step))) },
        { ...axis, size: 55, values: (_, ticks, __, ___, step) => ticks.map((v) => `${fixed(v, stepDigits(step))} %`) },
      ],
      series: [
        { label: "strike", class: "time", value: (_, strike) => (strike == null ? "at the money" : plainNumber(strike)) },
        ...this.names.map((name, i) => ({
          label: name, stroke: SMILES[i % SMILES.length], dash: [[], ...DASHES][Math.floor(i / SMILES.length) % 3],
          width: 1.4, spanGaps: true, points: { show: false },
          value: (_, volatility, __, at) => this.legendText(name, volatility, at),
        })),
      ],
      hooks: {
        setSelect: [(plot) => { if (plot.select.width) this.zoomed = true; }],
        draw: [(plot) => this.drawForward(plot)],
      },
    };
    this.plot = new uPlot(options, this.columns(), this.plotHost);
    this.plot.over.addEventListener("dblclick", () => { this.zoomed = false; });
  }

  // The volatility at the cursor, or else at the money.
  legendText(name, volatility, at) {
    const { y, atm } = this.lines[name];
    const shown = at == null ? y[atm] : volatility;
    return shown == null ? "-" : `${fixed(shown, 1)} %`;
  }

  // A dashed line at the forward of the chosen expiry.
  drawForward(plot) {
    if (this.forward == null) return;
    const x = plot.valToPos(this.forward, "x", true);
    const { left, top, width, height } = plot.bbox;
    if (x < left || x > left + width) return;
    const pen = plot.ctx;
    pen.save();
    pen.strokeStyle = getComputedStyle(this.plotHost).color;
    pen.globalAlpha = 0.6;
    pen.setLineDash([4, 4]);
    pen.beginPath();
    pen.moveTo(x, top);
    pen.lineTo(x, top + height);
    pen.stroke();
    pen.restore();
  }

  draw() {
    if (!this.plot || !this.dirty) return;
    this.dirty = false;
    const { min, max } = this.plot.scales.x;
    this.plot.batch(() => {
      this.plot.setData(this.columns(), !this.zoomed);
      if (this.zoomed) this.plot.setScale("x", { min, max });
    });
    this.plot.setLegend({ idx: this.plot.cursor.idx }, false);
  }

  remove() {
    this.resizer.disconnect();
    this.plot?.destroy();
  }
}

// The options of a listener: the chain of one expiry, and the smiles of its underlying.
class OptionsView {
  // `choose` gets the name of an expiry.
  constructor(host, choose) {
    this.select = selection("expiry");
    this.select.addEventListener("change", () => choose(this.select.value));
    this.about = element("span", { class: "note", text: "no options yet" });
    const side = (text, columns) => element("th", { scope: "colgroup", colspan: columns, class: "side", text });
    this.body = element("tbody");
    this.table = element("table", {},
      element("thead", {}, element("tr", {}, side("calls", 4), side("", 1), side("puts", 4)),
        element("tr", {}, ...CHAIN.map((text) => element("th", { scope: "col", text, class: text === "strike" ? "strike" : "" })))),
      this.body);
    this.scroll = element("div", { class: "scroll", tabindex: "-1" }, this.table);
    for (const event of ["wheel", "pointerdown", "keydown"]) {
      this.scroll.addEventListener(event, () => { this.scrolled = true; }, { passive: true });
    }
    this.more = element("div", { class: "note" });
    this.box = element("div", { class: "options" }, element("section", { class: "chain" },
      element("div", { class: "bar" }, element("b", { text: "options" }), this.select, this.about), this.scroll, this.more));
    host.append(this.box);
    this.select.hidden = this.table.hidden = true;
    // What the rows show, and their elements.
    this.values = [];
    this.rows = [];
    this.expiries = [];
  }

  // Show the full state, or changes.
  show(message) {
    if (message.expiries) this.load(message);
    if (!this.rows.length) return;
    setText(this.about, `forward ${message.forward_text} · prices in ${this.unit}`);
    for (const [i, values] of Object.entries(message.rows)) this.values[i] = values;
    const formatted = message.digits === this.digits ? Object.keys(message.rows) : this.values.keys();
    this.digits = message.digits;
    for (const i of formatted) this.showRow(i);
    if (message.atm !== this.atm) {
      this.rows[this.atm]?.line.classList.remove("atm");
      this.rows[message.atm].line.classList.add("atm");
      this.atm = message.atm;
    }
    this.smiles.update(message.smiles, message.forward);
  }

  load(message) {
    if (!message.expiries.length) return;
    if (message.expiries.join() !== this.expiries.join()) {
      this.expiries = message.expiries;
      this.select.replaceChildren(...this.expiries.map((name) => element("option", { value: name, text: name })));
    }
    if (this.select.value !== message.chosen) this.scrolled = false;
    this.select.value = message.chosen;
    this.select.hidden = this.table.hidden = false;
    this.unit = message.unit;
    this.table.setAttribute("aria-label", `options of ${message.chosen}`);
    this.rows = message.strikes.map((strike) => {
      const cells = Array.from({ length: 8 }, () => element("td"));
      const middle = element("th", { scope: "row", class: "strike", text: strike });
      return { cells, line: element("tr", {}, ...cells.slice(0, 4), middle, ...cells.slice(4)) };
    });
    this.values = [];
    this.atm = null;
    this.body.replaceChildren(...this.rows.map((row) => row.line));
    // The strike at the money is in the middle until the user scrolls.
    this.toCentre = !this.scrolled;
    setText(this.more, message.more ? `and ${whole(message.more)} more strikes` : "");
    this.smiles ??= new SmileChart(this.box);
    this.smiles.load(message.underlying, message.smiles);
  }

  showRow(i) {
    const decimals = [1, 2, this.digits, this.digits, this.digits, this.digits, 2, 1];
    this.values[i].forEach((value, column) => {
      setText(this.rows[i].cells[column], value == null ? "-" : fixed(value, decimals[column]));
    });
  }

  draw() {
    this.smiles?.draw();
    if (!this.toCentre) return;
    this.toCentre = false;
    const { line } = this.rows[this.atm];
    this.scroll.scrollTop = line.offsetTop - (this.scroll.clientHeight - line.clientHeight) / 2;
  }

  remove() {
    this.smiles?.remove();
    this.box.remove();
  }
}

function drawSpark(canvas, points, colour) {
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== 100 * scale) { canvas.width = 100 * scale; canvas.height = 20 * scale; }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, 100, 20);
  if (points.length < 2) return;
  const low = Math.min(...points);
  const span = Math.max(...points) - low || 1;
  pen.beginPath();
  points.forEach((p, i) => pen.lineTo(2 + (i / (points.length - 1)) * 96, 18 - ((p - low) / span) * 16));
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  pen.stroke();
}

// Send a message on the kernel's control channel, which is served while a cell runs. Resolves to whether it was answered.
function sendOnControl(kernel, type, content) {
  let settings;
  try {
    settings = JSON.parse(document.getElementById("jupyter-config-data").textContent);
  } catch {
    return Promise.resolve(false);
  }
  if (!kernel) return Promise.resolve(false);
  const base = new URL(settings.baseUrl || "/", settings.wsUrl || window.location.href);
  base.protocol = base.protocol.replace("http", "ws");
  const session = crypto.randomUUID ? crypto.randomUUID() : `finx${Date.now()}`;
  const url = new URL(`api/kernels/${encodeURIComponent(kernel)}/channels`, base);
  url.searchParams.set("session_id", session);
  if (settings.token) url.searchParams.set("token", settings.token);
  return new Promise((resolve) => {
    const socket = new WebSocket(url);
    const done = (sent) => { clearTimeout(timer); resolve(sent); socket.close(); };
    const timer = setTimeout(() => done(false), 10000);
    socket.onerror = () => done(false);
    socket.onopen = () => {
      const header = {
        msg_id: `${session}_1`, msg_type: type, username: "", session, date: new Date().toISOString(), version: "5.3",
      };
      socket.send(JSON.stringify({ channel: "control", header, parent_header: {}, metadata: {}, content, buffers: [] }));
    };
    socket.onmessage = (event) => {
      if (typeof event.data === "string" && event.data.includes(`${type}_reply`)) done(true);
    };
  });
}

function render({ model, el }) {
  const page = `${Date.now().toString(36)}${Math.random().toString(36).slice(2)}`;
  const light = element("span", { class: "light" });
  const title = element("span", { class: "title" });
  const totals = element("span", { class: "totals" });
  const stop = element("button", { type: "button", class: "stop", text: "Stop", "aria-label": "stop the listener" });
  const body = element("tbody");
  const heads = ["stream", "state", "price", "exchange", "last minute", "ticks/s", "lag", "ticks", "gaps"];
  const isText = (name) => ["stream", "state", "exchange", "last minute"].includes(name);
  const head = element("tr", {}, ...heads.map((name) =>
    element("th", { scope: "col", text: name, class: isText(name) ? "text" : "" })));
  const table = element("table", { "aria-label": "streams" }, element("thead", {}, head), body);
  const more = element("div", { class: "note" });
  const charts = element("div", { class: "charts" });
  const optionsHost = element("div");
  const note = element("span", { class: "note" });
  const spoken = element("span", { class: "quiet", role: "status", "aria-live": "polite" });
  const root = element("div", { class: "finx", role: "region", "aria-label": "live ticks" },
    element("header", {}, title, light, note, element("span", { class: "space" }), stop),
    element("div", { class: "scroll", tabindex: "-1" }, table), more, totals, charts, optionsHost, spoken);
  el.append(root);

  let symbols = [];
  let rows = [];
  let state = "";
  let reason = "";
  let lastMessage = performance.now();
  let isLive = false;
  let quiet = false;
  let closed = false;
  let sent = 0;
  // The timers of the messages without an answer.
  const unanswered = new Map();
  let control = Promise.resolve(true);
  let drawRequested = false;
  let options = null;
  const plots = new Map();
  const dirtySparks = new Set();
  // For measurements: frames received, frames drawn, and the latency of each frame in ms, by the clocks of both sides.
  const meter = { frames: 0, drawn: 0, lag: [], full: 0 };
  root.finxMeter = meter;
  // For tests: labels are drawn on a canvas.
  root.finxCharts = plots;
  root.finxOptions = () => options;

  function makeRows(full) {
    symbols = full.symbols;
    rows = symbols.map((symbol, i) => {
      const pick = element("button", { type: "button", text: symbol, "aria-pressed": "false", title: `chart of ${symbol}` });
      pick.addEventListener("click", () => choose(symbol));
      const cells = Object.fromEntries(heads.map((name) => [name, element("td", { class: isText(name) ? "text" : "" })]));
      cells.stream.append(full.uncharted.includes(i) ? element("span", { class: "plain", text: symbol }) : pick);
      cells.price.className = "price";
      const spark = element("canvas", { class: "spark", role: "img", "aria-label": `prices of ${symbol} in the last minute` });
      cells["last minute"].append(spark);
      const light = element("span", { class: "light" });
      cells.state.append(light);
      return { pick, spark, light, cells, points: full.sparks[i].slice(), from: 0 };
    });
    body.replaceChildren(...rows.map((row) => element("tr", {}, ...Object.values(row.cells))));
    rows.forEach((_, i) => dirtySparks.add(i));
    setText(more, full.more ? `and ${whole(full.more)} more streams` : "");
  }

  // Send a message to the kernel. While it runs a cell, it may not read the message: then repeat it on the control channel.
  function tell(message, unheard = () => {}) {
    const numbered = { ...message, page, n: ++sent };
    model.send(numbered);
    unanswered.set(numbered.n, setTimeout(() => {
      // One after the other, because the kernel ignores a message that is older than the last one.
      control = control.then(async () => {
        if (!unanswered.has(numbered.n)) return;
        const content = { view: String(model.get("view_id")), message: numbered };
        const found = await sendOnControl(model.get("kernel"), "finx_streamer_page", content).catch(() => false);
        if (!found && unanswered.has(numbered.n)) unheard();
      });
    }, ANSWER_WITHIN));
  }

  function heard(message) {
    if (message.page !== page) return;
    clearTimeout(unanswered.get(message.n));
    unanswered.delete(message.n);
  }

  function choose(symbol) {
    const chosen = [...plots.keys()];
    const next = plots.has(symbol) ? chosen.filter((other) => other !== symbol) : [...chosen, symbol].slice(-4);
    tell({ kind: "chart", pairs: next });
  }

  function showRow(i, [text, price, exchange, at, direction], isNew) {
    const row = rows[i];
    if (!row) return;
    const arrow = direction > 0 ? "▲ " : direction < 0 ? "▼ " : "";
    setText(row.cells.price, arrow + text);
    row.cells.price.className = `price ${direction > 0 ? "up" : direction < 0 ? "down" : ""}`;
    setText(row.cells.exchange, exchange);
    if (isNew && price != null) {
      if (at - row.from >= 1) { row.from = at; row.points.push(price); if (row.points.length > 60) row.points.shift(); }
      else if (row.points.length) row.points[row.points.length - 1] = price;
      dirtySparks.add(i);
    }
  }

  function showStats(message) {
    if (!message.totals) return;
    if (message.state !== state || message.reason !== reason) {
      ({ state, reason } = message);
      light.dataset.state = state;
      showFreshness();
      setText(spoken, `listener is ${state}`);
      stop.disabled = ENDED.includes(state) || !isLive;
    }
    const s = message.totals;
    setText(totals, `${whole(s.ticks)} ticks · ${fixed(s.rate, 1)}/s · ${whole(s.waiting)} waiting · ${whole(s.dropped)} dropped · `
      + `${whole(s.reconnects)} reconnects · ${whole(s.gaps)} gaps · ${whole(s.errors)} errors`);
    message.streams.forEach(([name, rate, lag, ticks, gaps], i) => {
      const row = rows[i];
      if (!row) return;
      row.light.dataset.state = name;
      setText(row.light, name);
      setText(row.cells["ticks/s"], fixed(rate, 1));
      setText(row.cells.lag, lag == null ? "-" : Math.abs(lag) > 86400 ? "old" : seconds(lag));
      setText(row.cells.ticks, whole(ticks));
      setText(row.cells.gaps, whole(gaps));
    });
  }

  // Whether the picture shows the present, or ended with the listener. If not, the lights are grey.
  function showFreshness() {
    const old = (quiet || closed) && !ENDED.includes(state);
    root.classList.toggle("old", old || (!isLive && !ENDED.includes(state)));
    setText(light, old ? `was ${state}` : reason ? `${state}: ${reason}` : state);
  }

  function showFull(message) {
    setText(title, message.name);
    closed = message.closed;
    if (message.symbols.join("\n") !== symbols.join("\n")) makeRows(message);
    message.rows.forEach((row, i) => showRow(i, row, false));
    message.sparks.forEach((points, i) => { rows[i].points = points.slice(); dirtySparks.add(i); });
    showCharts(Object.keys(message.charts), message.charts);
    if (!message.options) { options?.remove(); options = null; }
    showOptions(message);
    showStats(message);
  }

  // Show the charts of these pairs, and load some of them.
  function showCharts(pairs, loaded) {
    for (const [pair, plot] of plots) if (!pairs.includes(pair)) { plot.remove(); plots.delete(pair); }
    for (const [pair, full] of Object.entries(loaded)) {
      if (!plots.has(pair)) {
        plots.set(pair, full.candles ? new CandleChart(pair, charts, full.seconds) : new PairChart(pair, charts));
      }
      plots.get(pair).load(full);
    }
    rows.forEach((row, i) => row.pick.setAttribute("aria-pressed", String(plots.has(symbols[i]))));
  }

  function showOptions(message) {
    if (!message.options) return;
    options ??= new OptionsView(optionsHost, (expiry) => tell({ kind: "expiry", expiry }));
    options.show(message.options);
  }

  function showFrame(message) {
    for (const [i, row] of Object.entries(message.rows)) showRow(Number(i), row, true);
    if (message.pairs) showCharts(message.pairs, message.new_charts);
    for (const [pair, points] of Object.entries(message.points)) plots.get(pair)?.add(message.now, points);
    showOptions(message);
    showStats(message);
  }

  function draw() {
    drawRequested = false;
    for (const i of dirtySparks) if (rows[i]) drawSpark(rows[i].spark, rows[i].points, SPARK);
    dirtySparks.clear();
    for (const plot of plots.values()) plot.draw(Date.now() / 1000);
    options?.draw();
    meter.drawn += 1;
  }

  function requestDraw() {
    if (!drawRequested) { drawRequested = true; requestAnimationFrame(draw); }
  }

  function received(message) {
    lastMessage = performance.now();
    if (message.kind === "heard") { heard(message); return; }
    if (!isLive) { isLive = true; stop.disabled = ENDED.includes(state); }
    if (message.kind === "stopping") {
      setText(note, "stopping …");
    } else if (message.kind === "full") {
      meter.full += 1;
      showFull(message);
    } else if (message.kind === "frame") {
      showFrame(message);
      meter.frames += 1;
      meter.lag.push(Date.now() - message.now * 1000);
      if (meter.lag.length > 2000) meter.lag.shift();
    }
    if (quiet || closed || ENDED.includes(state)) {
      quiet = false;
      note.className = "note";
      setText(note, closed && !ENDED.includes(state) ? "view closed" : "");
    }
    if (closed) stop.disabled = true;
    showFreshness();
    requestDraw();
  }

  stop.addEventListener("click", () => {
    stop.disabled = true;
    setText(note, "stopping …");
    tell({ kind: "stop" }, () => setText(note, "the kernel is busy: the listener stops when the running cell ends"));
  });

  // Visibility.
  let inView = true;
  const isVisible = () => inView && document.visibilityState === "visible" && root.isConnected;
  // Not repeated: while a cell runs, a page stays visible until it says that it is hidden.
  const sendVisible = () => { if (isVisible()) model.send({ kind: "visible", page, n: ++sent }); };
  const visibilityChanged = () => {
    if (isVisible()) { lastMessage = performance.now(); tell({ kind: "visible" }); } else tell({ kind: "hidden" });
  };
  const observer = new IntersectionObserver((entries) => {
    const now = entries[entries.length - 1].isIntersecting;
    if (now !== inView) { inView = now; visibilityChanged(); }
  });
  observer.observe(root);
  document.addEventListener("visibilitychange", visibilityChanged);
  // Columns only grow: with the width of each text, the table would jitter.
  const columns = new ResizeObserver((entries) => {
    for (const { target, borderBoxSize: [{ inlineSize }] } of entries) {
      if (inlineSize > (parseFloat(target.style.minWidth) || 0)) target.style.minWidth = `${inlineSize}px`;
    }
  });
  for (const cell of head.children) columns.observe(cell);
  const visibleTimer = setInterval(sendVisible, VISIBLE_EVERY);
  const quietTimer = setInterval(() => {
    const silence = performance.now() - lastMessage;
    if (!isVisible() || closed || ENDED.includes(state) || silence < QUIET_AFTER) return;
    if (!quiet) { quiet = true; showFreshness(); setText(spoken, "no data from the kernel"); stop.disabled = true; }
    note.className = "note bad";
    setText(note, `no data for ${Math.round(silence / 1000)} s`);
  }, 500);

  model.on("msg:custom", received);
  const saved = model.get("saved");
  if (saved && saved.symbols) { showFull(saved); showFreshness(); lastMessage = performance.now(); requestDraw(); }
  stop.disabled = true;
  tell({ kind: "hello" });

  return () => {
    clearInterval(visibleTimer);
    clearInterval(quietTimer);
    for (const timer of unanswered.values()) clearTimeout(timer);
    observer.disconnect();
    columns.disconnect();
    document.removeEventListener("visibilitychange", visibilityChanged);
    model.off("msg:custom", received);
    for (const plot of plots.values()) plot.remove();
    options?.remove();
    try { model.send({ kind: "hidden", page, n: ++sent }); } catch { /* the kernel is gone */ }
  };
}

export default { render };
