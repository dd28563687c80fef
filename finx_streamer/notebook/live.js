// The page of the live view. `uPlot` is prepended to this file. Set text from the kernel as text, never as HTML.

const COLOURS = ["#4c8dd6", "#e07b39", "#2e9e4f", "#c2529b", "#8f7ae0", "#b59a00", "#17a2a2", "#d9423a"];
// Milliseconds between two messages that say that the view is visible.
const VISIBLE_EVERY = 2000;
// Milliseconds without a message after which the view reports that there is no data.
const QUIET_AFTER = 3000;
// Milliseconds to wait for an answer to a stop before repeating it on the control channel.
const ANSWER_WITHIN = 400;
// The highest number of points in a chart.
const ROWS_KEPT = 9000;
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

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const whole = (n) => Math.round(n).toLocaleString("en-US");
const seconds = (s) => (s < 0.9995 ? `${Math.round(s * 1000)} ms` : s < 99.95 ? `${s.toFixed(1)} s` : `${whole(s / 60)} min`);
const clock = (t) => new Date(t * 1000).toISOString().slice(11, 23);

function priceText(price) {
  if (price == null) return "-";
  const text = String(Number(price.toPrecision(12)));
  return text.includes("e") ? text : text.replace(/\B(?=(\d{3})+(?!\d)(?=\.|$))/, ",");
}

// Gives each exchange the same colour in all charts.
class Colours {
  constructor() { this.names = []; }

  of(name) {
    if (!this.names.includes(name)) this.names.push(name);
    return COLOURS[this.names.indexOf(name) % COLOURS.length];
  }
}

// The chart of one pair, with a line for each exchange.
class PairChart {
  constructor(pair, host, colours) {
    this.pair = pair;
    this.host = host;
    this.colours = colours;
    this.exchanges = [];
    this.data = [[]];
    this.span = 60;
    this.follow = true;
    this.box = element("section", { class: "chart", tabindex: "0", role: "group" });
    this.box.setAttribute("aria-label", `chart of ${pair}; plus and minus zoom, arrows move, f follows`);
    const button = (text, label, act) => {
      const made = element("button", { type: "button", text, "aria-label": label, title: label });
      made.addEventListener("click", act);
      return made;
    };
    this.followButton = button("follow", "follow the newest ticks", () => this.setFollow(!this.follow));
    this.select = element("select", { "aria-label": "how much time is shown" });
    for (const [text, value] of [["15 s", 15], ["1 min", 60], ["5 min", 300], ["10 min", 600]]) {
      this.select.append(element("option", { value, text }));
    }
    this.select.value = "60";
    this.select.addEventListener("change", () => { this.span = Number(this.select.value); this.setFollow(true); });
    this.box.append(
      element("div", { class: "bar" }, element("b", { text: pair }), this.followButton, this.select,
        button("+", "zoom in", () => this.zoom(0.5)), button("−", "zoom out", () => this.zoom(2))),
    );
    this.plotHost = element("div");
    this.box.append(this.plotHost);
    this.box.addEventListener("keydown", (event) => this.key(event));
    host.append(this.box);
    this.setFollow(true);
  }

  load(full) {
    this.exchanges = full.exchanges.slice();
    this.data = [full.x.slice(), ...full.y.map((line) => line.slice())];
    this.rebuild();
  }

  add(at, points) {
    if (points.exchanges.length !== this.exchanges.length) {
      for (const exchange of points.exchanges.slice(this.exchanges.length)) {
        this.exchanges.push(exchange);
        this.data.push(new Array(this.data[0].length).fill(null));
      }
      this.rebuild();
    }
    const x = this.data[0];
    x.push(x.length && at <= x[x.length - 1] ? x[x.length - 1] + 1e-6 : at);
    for (let i = 1; i < this.data.length; i++) this.data[i].push(points.y[i - 1] ?? null);
    if (x.length > ROWS_KEPT) for (const column of this.data) column.splice(0, 1000);
    this.dirty = true;
  }

  rebuild() {
    if (this.plot) this.plot.destroy();
    const range = this.plot ? [this.plot.scales.x.min, this.plot.scales.x.max] : null;
    const stroke = () => getComputedStyle(this.plotHost).color;
    const grid = { stroke: "rgba(128,128,128,0.22)", width: 1 };
    const axis = { stroke, grid, ticks: grid, font: "11px system-ui, sans-serif" };
    const line = (exchange, i) => ({
      label: exchange, stroke: this.colours.of(exchange), width: 1.4, spanGaps: true, points: { show: false },
      dash: i < COLOURS.length ? undefined : [6, 3], value: (_, v) => priceText(v),
    });
    const options = {
      width: this.width(), height: 210, ms: 1,
      tzDate: (t) => uPlot.tzDate(new Date(t * 1000), "Etc/UTC"),
      cursor: { drag: { x: true, y: false, setScale: false } },
      scales: { x: { time: true } },
      axes: [
        { ...axis, space: 70, values: (_, ticks) => ticks.map((t) => clock(t).slice(0, 8)) },
        { ...axis, size: 74, values: (_, ticks) => ticks.map(priceText) },
      ],
      series: [{ label: "time (UTC)", value: (_, v) => (v == null ? "-" : clock(v)) }, ...this.exchanges.map(line)],
      legend: { live: true },
      hooks: {
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
    this.dirty = true;
  }

  width() { return Math.max(260, Math.min(900, this.host.clientWidth || 700)); }

  resize() { if (this.plot) this.plot.setSize({ width: this.width(), height: 210 }); }

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
    const view = this.follow ? { min: last - this.span, max: last } : { ...this.plot.scales.x };
    this.plot.batch(() => {
      this.plot.setData(this.data, false);
      this.plot.setScale("x", { min: view.min, max: view.max });
    });
  }

  zoom(factor) {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    const middle = this.follow ? max : (min + max) / 2;
    const half = Math.max(0.25, ((max - min) * factor) / 2);
    if (this.follow) {
      this.span = Math.min(600, half * 2);
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
    if (this.plot) this.plot.destroy();
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
  const note = element("span", { class: "note" });
  const spoken = element("span", { class: "quiet", role: "status", "aria-live": "polite" });
  const root = element("div", { class: "finx", role: "region", "aria-label": "live ticks" },
    element("header", {}, title, light, note, element("span", { class: "space" }), stop),
    element("div", { class: "scroll", tabindex: "-1" }, table), more, totals, charts, spoken);
  el.append(root);

  let symbols = [];
  let rows = [];
  let state = "";
  let lastMessage = performance.now();
  let isLive = false;
  let quiet = false;
  let stopTimer = 0;
  let drawRequested = false;
  const plots = new Map();
  const colours = new Colours();
  const dirtySparks = new Set();
  // For measurements: frames received, frames drawn, and the latency of each frame in ms, by the clocks of both sides.
  const meter = { frames: 0, drawn: 0, lag: [], full: 0 };
  root.finxMeter = meter;

  function makeRows(full) {
    symbols = full.symbols;
    rows = symbols.map((symbol, i) => {
      const pick = element("button", { type: "button", text: symbol, "aria-pressed": "false", title: `chart of ${symbol}` });
      pick.addEventListener("click", () => choose(symbol));
      const cells = Object.fromEntries(heads.map((name) => [name, element("td", { class: isText(name) ? "text" : "" })]));
      cells.stream.append(pick);
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

  function choose(symbol) {
    const chosen = [...plots.keys()];
    const next = plots.has(symbol) ? chosen.filter((other) => other !== symbol) : [...chosen, symbol].slice(-4);
    model.send({ kind: "chart", page, pairs: next });
  }

  function showRow(i, [text, exchange, at, direction], isNew) {
    const row = rows[i];
    if (!row) return;
    const arrow = direction > 0 ? "▲ " : direction < 0 ? "▼ " : "";
    setText(row.cells.price, arrow + text);
    row.cells.price.className = `price ${direction > 0 ? "up" : direction < 0 ? "down" : ""}`;
    setText(row.cells.exchange, exchange);
    const price = Number(text);
    if (isNew && Number.isFinite(price)) {
      if (at - row.from >= 1) { row.from = at; row.points.push(price); if (row.points.length > 60) row.points.shift(); }
      else if (row.points.length) row.points[row.points.length - 1] = price;
      dirtySparks.add(i);
    }
  }

  function showStats(message) {
    if (!message.totals) return;
    if (message.state !== state) {
      state = message.state;
      light.dataset.state = state;
      setText(light, state);
      setText(spoken, `listener is ${state}`);
      stop.disabled = ENDED.includes(state) || !isLive;
      if (ENDED.includes(state)) clearStop();
    }
    const s = message.totals;
    setText(totals, `${whole(s.ticks)} ticks · ${s.rate.toFixed(1)}/s · ${whole(s.waiting)} waiting · ${whole(s.dropped)} dropped · `
      + `${whole(s.reconnects)} reconnects · ${whole(s.gaps)} gaps · ${whole(s.errors)} errors`);
    message.streams.forEach(([name, rate, lag, ticks, gaps], i) => {
      const row = rows[i];
      if (!row) return;
      row.light.dataset.state = name;
      setText(row.light, name);
      setText(row.cells["ticks/s"], rate.toFixed(1));
      setText(row.cells.lag, lag == null ? "-" : Math.abs(lag) > 86400 ? "old" : seconds(lag));
      setText(row.cells.ticks, whole(ticks));
      setText(row.cells.gaps, whole(gaps));
    });
  }

  function showFull(message) {
    setText(title, message.name);
    if (message.symbols.join("\n") !== symbols.join("\n")) makeRows(message);
    message.rows.forEach((row, i) => showRow(i, row, false));
    message.sparks.forEach((points, i) => { rows[i].points = points.slice(); dirtySparks.add(i); });
    for (const [pair, plot] of plots) if (!(pair in message.charts)) { plot.remove(); plots.delete(pair); }
    for (const [pair, full] of Object.entries(message.charts)) {
      if (!plots.has(pair)) plots.set(pair, new PairChart(pair, charts, colours));
      plots.get(pair).load(full);
    }
    rows.forEach((row, i) => row.pick.setAttribute("aria-pressed", String(plots.has(symbols[i]))));
    showStats(message);
  }

  function showFrame(message) {
    for (const [i, row] of Object.entries(message.rows)) showRow(Number(i), row, true);
    for (const [pair, points] of Object.entries(message.points)) plots.get(pair)?.add(message.now, points);
    showStats(message);
  }

  function draw() {
    drawRequested = false;
    const colour = COLOURS[0];
    for (const i of dirtySparks) if (rows[i]) drawSpark(rows[i].spark, rows[i].points, colour);
    dirtySparks.clear();
    for (const plot of plots.values()) plot.draw(Date.now() / 1000);
    meter.drawn += 1;
  }

  function requestDraw() {
    if (!drawRequested) { drawRequested = true; requestAnimationFrame(draw); }
  }

  function received(message) {
    lastMessage = performance.now();
    if (!isLive) { isLive = true; stop.disabled = ENDED.includes(state); }
    if (message.kind === "stopping") {
      clearStop();
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
    if (quiet || ENDED.includes(state)) { quiet = false; note.className = "note"; setText(note, ""); }
    requestDraw();
  }

  function clearStop() {
    clearTimeout(stopTimer);
    stopTimer = 0;
  }

  stop.addEventListener("click", () => {
    stop.disabled = true;
    setText(note, "stopping …");
    model.send({ kind: "stop", page });
    // A kernel that runs a cell may not read it.
    stopTimer = setTimeout(async () => {
      const sent = await sendOnControl(model.get("kernel"), "finx_streamer_stop", { view: String(model.get("view_id")) });
      if (!sent && stopTimer) setText(note, "the kernel is busy: the listener stops when the running cell ends");
    }, ANSWER_WITHIN);
  });

  // Visibility.
  let inView = true;
  const isVisible = () => inView && document.visibilityState === "visible" && root.isConnected;
  const sendVisible = () => { if (isVisible()) model.send({ kind: "visible", page }); };
  const visibilityChanged = () => {
    if (isVisible()) { lastMessage = performance.now(); sendVisible(); } else model.send({ kind: "hidden", page });
  };
  const observer = new IntersectionObserver((entries) => {
    const now = entries[entries.length - 1].isIntersecting;
    if (now !== inView) { inView = now; visibilityChanged(); }
  });
  observer.observe(root);
  document.addEventListener("visibilitychange", visibilityChanged);
  const resizer = new ResizeObserver(() => { for (const plot of plots.values()) plot.resize(); });
  resizer.observe(root);
  const visibleTimer = setInterval(sendVisible, VISIBLE_EVERY);
  const quietTimer = setInterval(() => {
    const silence = performance.now() - lastMessage;
    if (!isVisible() || ENDED.includes(state) || silence < QUIET_AFTER) return;
    if (!quiet) { quiet = true; setText(spoken, "no data from the kernel"); stop.disabled = true; }
    note.className = "note bad";
    setText(note, `no data for ${Math.round(silence / 1000)} s`);
  }, 500);

  model.on("msg:custom", received);
  const saved = model.get("saved");
  if (saved && saved.symbols) { showFull(saved); lastMessage = performance.now(); requestDraw(); }
  stop.disabled = true;
  model.send({ kind: "hello", page });

  return () => {
    clearInterval(visibleTimer);
    clearInterval(quietTimer);
    clearStop();
    observer.disconnect();
    resizer.disconnect();
    document.removeEventListener("visibilitychange", visibilityChanged);
    model.off("msg:custom", received);
    for (const plot of plots.values()) plot.remove();
    try { model.send({ kind: "hidden", page }); } catch { /* the kernel is gone */ }
  };
}

export default { render };
