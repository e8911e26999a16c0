// What a page of Surefoot does in the browser: charts by uPlot in the place of its pictures, the confusion matrix in two
// forms, and where `surefoot report --serve` gave it, news of the run. It works on data attributes; every text that it
// shows is set as text, never as HTML.
"use strict";
(() => {
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, into, properties = {}) => Object.assign(into.appendChild(document.createElement(tag)), properties);

  function figure(value, percent, digits = 5) {
    if (value == null) return "";
    if (percent) return (100 * value).toFixed(2) + " %";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en");
    return size >= 1e6 || (size && size < 1e-3) ? value.toExponential(digits - 2) : String(+value.toPrecision(digits));
  }

  // The values of an axis, with as many digits as tell them apart.
  function labels(values, percent) {
    const text = digits => values.map(value =>
      percent && value != null ? +(100 * value).toPrecision(digits) + " %" : figure(value, false, digits));
    let digits = percent ? 4 : 5;
    while (digits < 16 && new Set(text(digits)).size < new Set(values).size) digits += 1;
    return text(digits);
  }

  // ------------------------------------------------------------------------------------------------- charts

  const charts = new Map(); // figure -> Chart

  class Chart {
    // `view` is what the reader has chosen: the part of the x axis, a logarithmic y axis, hidden lines, the cursor.
    constructor(box, view) {
      this.box = box;
      this.spec = JSON.parse(box.dataset.chart);
      this.view = view || { range: null, log: this.spec.log, hidden: [], at: null };
      box.classList.add("live");
      const tools = make("div", box, { className: "tools" });
      this.keys = make("div", tools, { className: "keys" });
      this.buttons = make("div", tools, { className: "buttons" });
      this.place = make("div", box, { className: "place", tabIndex: 0 });
      this.place.setAttribute("role", "group");
      this.place.setAttribute(
        "aria-label",
        `Chart of ${this.spec.y} by ${this.spec.x}. Arrow keys move, with Shift the part that is shown; plus and minus zoom, ` +
          "L is a logarithmic axis, Escape shows everything."
      );
      this.read = make("div", box, { className: "read" });
      this.read.setAttribute("aria-live", "polite");
      this.button("log", "logarithmic axis (L)", () => this.setLog(!this.view.log)).setAttribute("aria-pressed", "false");
      this.button("\u2212", "zoom out (-)", () => this.zoom(2));
      this.button("+", "zoom in (+), or drag over the chart", () => this.zoom(0.5));
      this.button("all", "show everything (Escape), or double-click", () => this.showAll());
      this.spec.lines.forEach((line, index) => this.key(line, index));
      this.place.addEventListener("keydown", event => this.pressed(event));
      this.draw();
      new ResizeObserver(() => this.resized()).observe(this.place);
    }

    button(text, title, act) {
      const button = make("button", this.buttons, { type: "button", textContent: text, title, onclick: act });
      button.setAttribute("aria-label", title);
      return button;
    }

    key(line, index) {
      const key = make("button", this.keys, { type: "button", title: "show or hide this line" });
      make("span", key, { className: "sign" + (line.dashed ? " dashed" : "") + (line.faint ? " faint" : "") }).style.color =
        `var(--c${line.colour})`;
      make("span", key, { textContent: line.label });
      key.setAttribute("aria-pressed", String(!this.view.hidden.includes(line.label)));
      key.onclick = () => {
        const { hidden } = this.view;
        const hides = !hidden.includes(line.label);
        this.view.hidden = hides ? [...hidden, line.label] : hidden.filter(label => label !== line.label);
        key.setAttribute("aria-pressed", String(!hides));
        this.plot.setSeries(index + 1, { show: !hides });
      };
    }

    // One x for all lines, null where a line has no point and a gap where it has no number.
    data() {
      const { lines } = this.spec;
      const y = line => (this.view.log ? line.y.map(value => (value > 0 ? value : null)) : line.y);
      const first = JSON.stringify(lines[0].x);
      if (lines.every(line => JSON.stringify(line.x) === first)) return [lines[0].x, ...lines.map(y)];
      return uPlot.join(lines.map(line => [line.x, y(line)]));
    }

    draw() {
      const { spec, view } = this;
      if (this.plot) this.plot.destroy();
      const data = this.data();
      this.buttons.firstChild.setAttribute("aria-pressed", String(view.log));
      const axis = { stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 } };
      axis.font = "12px system-ui, sans-serif";
      const count = data[0].length;
      this.whole = spec.across || [data[0][0], data[0][count - 1]];
      this.plot = new uPlot(
        {
          width: this.place.clientWidth || 640,
          height: this.height(),
          legend: { show: false },
          cursor: {
            drag: { x: true, y: false },
            focus: { prox: 24 },
            // Of a line without a point there, its nearest one.
            dataIdx: (u, series, index) => nearest(u.data[series], index),
          },
          focus: { alpha: 1 },
          scales: {
            x: { time: false, range: spec.across || undefined },
            y: { distr: view.log ? 3 : 1, range: view.log ? undefined : spec.up || undefined },
          },
          axes: [
            { ...axis, label: spec.x, labelFont: axis.font, labelSize: 18, size: 34, values: (u, splits) => labels(splits) },
            { ...axis, size: 64, values: (u, splits) => labels(splits, spec.percent) },
          ],
          series: [{}, ...spec.lines.map(line => this.series(line, count))],
          hooks: {
            draw: [u => this.drawMarks(u)],
            setCursor: [u => this.pointAt(u)],
            setScale: [(u, name) => name === "x" && this.ranged(u)],
          },
        },
        data,
        this.place
      );
      this.tip = make("div", this.plot.over, { className: "tip", hidden: true });
      if (view.range) this.plot.setScale("x", { min: view.range[0], max: view.range[1] });
      if (view.at) this.plot.setCursor(view.at);
    }

    series(line, count) {
      const stroke = css(`--c${line.colour}`);
      const series = { label: line.label, stroke, width: line.faint ? 1 : 2, show: !this.view.hidden.includes(line.label) };
      if (line.dashed) series.dash = [6, 4];
      if (line.faint) series.alpha = 0.55;
      series.points = { show: line.form === "dots" && line.x.length <= 60, size: 6, fill: stroke };
      if (line.form === "steps") Object.assign(series, { paths: uPlot.paths.stepped({ align: 1 }), fill: stroke + "33" });
      if (line.form === "points") {
        Object.assign(series, { paths: () => null, points: { show: true, size: count > 300 ? 4 : 6, fill: stroke + "66", stroke: "transparent" } });
      }
      return series;
    }

    height() {
      return this.place.clientWidth < 480 ? 220 : 300;
    }

    resized() {
      const width = this.place.clientWidth;
      if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.height() });
    }

    drawMarks(u) {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = css("--dim");
      ctx.lineWidth = devicePixelRatio;
      ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = "right";
      let taken = -Infinity;
      for (const [x, label] of this.spec.marks) {
        const left = u.valToPos(x, "x", true);
        if (left < bbox.left || left > bbox.left + bbox.width) continue;
        ctx.setLineDash([devicePixelRatio, 3 * devicePixelRatio]);
        ctx.beginPath();
        ctx.moveTo(left, bbox.top);
        ctx.lineTo(left, bbox.top + bbox.height);
        ctx.stroke();
        if (left - taken < 15 * devicePixelRatio) continue;
        taken = left;
        ctx.save();
        ctx.translate(left + 11 * devicePixelRatio, bbox.top + 4 * devicePixelRatio);
        ctx.rotate(-Math.PI / 2);
        ctx.fillText(label, 0, 0);
        ctx.restore();
      }
      ctx.restore();
    }

    // The values at the cursor, beside it.
    pointAt(u) {
      const { idx, left, top } = u.cursor;
      this.view.at = left >= 0 ? { left, top } : null;
      if (!this.tip) return;
      this.tip.hidden = idx == null || left < 0;
      if (this.tip.hidden) return;
      const { spec } = this;
      this.tip.textContent = "";
      make("b", this.tip, { textContent: `${spec.x} ${figure(u.data[0][idx])}` });
      for (const [index, line] of spec.lines.entries()) {
        const at = u.cursor.idxs[index + 1];
        if (!u.series[index + 1].show || at == null || u.data[index + 1][at] == null) continue;
        const row = make("div", this.tip);
        make("span", row, { className: "sign" }).style.color = `var(--c${line.colour})`;
        const elsewhere = at === idx ? "" : ` at ${figure(u.data[0][at])}`;
        make("span", row, { textContent: `${line.label} ${figure(u.data[index + 1][at], spec.percent)}${elsewhere}` });
      }
      const wide = this.tip.offsetWidth;
      const beside = left + 14 + wide > u.over.clientWidth ? Math.max(0, left - 14 - wide) : left + 14;
      this.tip.style.left = `${beside}px`;
      this.tip.style.top = `${Math.max(0, Math.min(top - 10, u.over.clientHeight - this.tip.offsetHeight))}px`;
    }

    ranged(u) {
      const { min, max } = u.scales.x;
      const whole = min <= this.whole[0] && max >= this.whole[1];
      this.view.range = whole ? null : [min, max];
      this.box.classList.toggle("zoomed", !whole);
    }

    setLog(log) {
      this.view.log = log;
      this.draw();
    }

    showAll() {
      this.plot.setScale("x", { min: this.whole[0], max: this.whole[1] });
    }

    zoom(factor, about) {
      const { min, max } = this.plot.scales.x;
      const at = this.view.at;
      const middle = about == null ? (at ? this.plot.posToVal(at.left, "x") : (min + max) / 2) : about;
      this.show(middle - (middle - min) * factor, middle + (max - middle) * factor);
    }

    show(min, max) {
      const [low, high] = this.whole;
      const wide = Math.min(max - min, high - low);
      if (!(wide > 0)) return;
      const from = Math.min(Math.max(min, low), high - wide);
      this.plot.setScale("x", { min: from, max: from + wide });
    }

    pressed(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const u = this.plot;
      const { min, max } = u.scales.x;
      const x = u.data[0];
      const way = { ArrowLeft: -1, ArrowRight: 1, PageUp: -0.1, PageDown: 0.1 }[event.key];
      const acts = { "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), _: () => this.zoom(2) };
      Object.assign(acts, { l: () => this.setLog(!this.view.log), L: () => this.setLog(!this.view.log), 0: () => this.showAll() });
      acts.Escape = () => {
        this.showAll();
        u.setCursor({ left: -10, top: -10 });
      };
      acts.Home = () => this.moveTo(x.findIndex(value => value >= min));
      acts.End = () => this.moveTo(x.findLastIndex ? x.findLastIndex(value => value <= max) : x.length - 1);
      if (way && event.shiftKey) this.show(min + (max - min) * way * 0.25, max + (max - min) * way * 0.25);
      else if (way) {
        const by = Math.abs(way) === 1 ? way : Math.sign(way) * Math.max(1, Math.round(x.length / 10));
        this.moveTo(u.cursor.idx == null || !this.view.at ? (way > 0 ? x.findIndex(v => v >= min) : x.length - 1) : u.cursor.idx + by);
      } else if (acts[event.key]) acts[event.key]();
      else return;
      event.preventDefault();
    }

    moveTo(index) {
      const u = this.plot;
      const at = Math.min(Math.max(index, 0), u.data[0].length - 1);
      const { min, max } = u.scales.x;
      const x = u.data[0][at];
      if (x < min || x > max) this.show(x - (max - min) / 2, x + (max - min) / 2);
      const line = this.spec.lines.findIndex((each, i) => u.series[i + 1].show && u.data[i + 1][nearest(u.data[i + 1], at)] != null);
      const value = line < 0 ? null : u.data[line + 1][nearest(u.data[line + 1], at)];
      u.setCursor({ left: u.valToPos(x, "x"), top: value == null ? 20 : u.valToPos(value, "y") });
      this.read.textContent = this.tip.innerText.replace(/\n+/g, "; ");
    }
  }

  function nearest(values, index) {
    for (let by = 0; by < values.length; by++) {
      if (values[index - by] != null) return index - by;
      if (values[index + by] != null) return index + by;
    }
    return index;
  }

  // -------------------------------------------------------------------------------------- confusion matrices

  const forms = { percent: "percent of each true class", counts: "counts" };
  const orders = { given: "as in the data", confused: "most confused first" };

  class Matrix {
    // Cells hold their counts; the forms and orders of the table are made of them.
    constructor(box, view) {
      this.box = box;
      this.view = view || { form: "percent", order: "given" };
      this.table = box.querySelector("table");
      this.rows = [...this.table.querySelectorAll("tr")].map(row => [...row.children]);
      this.counts = this.rows.slice(1).map(row => row.slice(1, -1).map(cell => +cell.dataset.n));
      const tools = document.createElement("div");
      tools.className = "tools";
      box.prepend(tools);
      this.choice(tools, "form", forms);
      this.choice(tools, "order", orders);
      this.arrange();
    }

    choice(tools, name, words) {
      const group = make("div", tools, { className: "buttons" });
      for (const [value, text] of Object.entries(words)) {
        const button = make("button", group, { type: "button", textContent: text });
        button.onclick = () => {
          this.view[name] = value;
          this.arrange();
        };
        button.dataset[name] = value;
      }
    }

    arrange() {
      const { counts, rows, view } = this;
      const classes = counts.map((_, index) => index);
      if (view.order === "confused") {
        // A class is confused as often as it is taken for others, and others for it.
        const confused = classes.map(i => classes.reduce((sum, j) => (i === j ? sum : sum + counts[i][j] + counts[j][i]), 0));
        classes.sort((a, b) => confused[b] - confused[a] || a - b);
      }
      const order = [0, ...classes.map(index => index + 1), counts.length + 1];
      const table = this.table.tBodies[0] || this.table;
      for (const index of [0, ...classes.map(each => each + 1)]) {
        const row = rows[index][0].parentElement;
        row.replaceChildren(...order.map(place => rows[index][place]));
        table.append(row);
      }
      for (const [i, row] of counts.entries()) {
        const total = row.reduce((a, b) => a + b, 0) || 1;
        for (const [j, count] of row.entries()) {
          const share = (100 * count) / total;
          rows[i + 1][j + 1].title = `${rows[i + 1][0].textContent} predicted as ${rows[0][j + 1].textContent}: ${count} of ${total}, ${share.toFixed(2)} %`;
          rows[i + 1][j + 1].textContent = count ? (view.form === "percent" ? share.toFixed(1) : count.toLocaleString("en")) : "";
        }
      }
      for (const button of this.box.querySelectorAll(".tools button")) {
        const [[name, value]] = Object.entries(button.dataset);
        button.setAttribute("aria-pressed", String(view[name] === value));
      }
    }
  }

  const matrices = new Map();

  // ------------------------------------------------------------------------------------------------- the page

  function begin(part, views = {}) {
    [...part.querySelectorAll("[data-chart]")].forEach((box, i) => charts.set(box, new Chart(box, (views.charts || [])[i])));
    [...part.querySelectorAll("[data-matrix]")].forEach((box, i) => matrices.set(box, new Matrix(box, (views.matrices || [])[i])));
  }

  // What the reader has chosen in a part of the page, to be there again when the part is new.
  function viewOf(part) {
    const each = (all, selector) => [...part.querySelectorAll(selector)].map(box => all.get(box) && all.get(box).view);
    const focusable = [...part.querySelectorAll("button, summary, [tabindex]")];
    return {
      charts: each(charts, "[data-chart]"),
      matrices: each(matrices, "[data-matrix]"),
      open: [...part.querySelectorAll("details")].map(details => details.open),
      scrolled: [...part.querySelectorAll(".scroll, pre")].map(box => [box.scrollLeft, box.scrollTop]),
      focus: focusable.indexOf(document.activeElement),
    };
  }

  function update(part, fresh) {
    const view = viewOf(part);
    for (const [box, chart] of charts) {
      if (!part.contains(box)) continue;
      chart.plot.destroy();
      charts.delete(box);
    }
    part.replaceChildren(...fresh.childNodes);
    begin(part, view);
    [...part.querySelectorAll("details")].forEach((details, i) => (details.open = view.open[i] || false));
    [...part.querySelectorAll(".scroll, pre")].forEach((box, i) => view.scrolled[i] && box.scrollTo(...view.scrolled[i]));
    const focusable = [...part.querySelectorAll("button, summary, [tabindex]")];
    if (view.focus >= 0 && focusable[view.focus]) focusable[view.focus].focus({ preventScroll: true });
  }

  // A part in which the reader drags or has marked something waits for the next time.
  function isBusy(part) {
    const selection = getSelection();
    return dragging || (!selection.isCollapsed && part.contains(selection.anchorNode));
  }

  let dragging = false;
  addEventListener("mousedown", () => (dragging = true), true);
  addEventListener("mouseup", () => (dragging = false), true);

  const parts = page => [...page.querySelectorAll("main > section[id]")];
  const texts = new Map(parts(document).map(part => [part.id, part.innerHTML]));

  function replace(page) {
    const fresh = parts(page);
    const ids = fresh.map(part => part.id);
    for (const part of parts(document)) if (!ids.includes(part.id)) part.remove();
    let before = null;
    for (const part of fresh) {
      const text = part.innerHTML;
      let there = document.getElementById(part.id);
      if (!there) {
        there = document.importNode(part, false);
        before ? before.after(there) : document.querySelector("main").prepend(there);
        texts.delete(part.id);
      }
      if (texts.get(part.id) !== text && !isBusy(there)) {
        update(there, document.importNode(part, true));
        texts.set(part.id, text);
      }
      before = there;
    }
    document.title = page.title;
  }

  const live = document.querySelector("meta[name=surefoot-live]");
  let tag = "";
  let seconds = live ? +live.content : 0;

  async function poll() {
    const status = document.getElementById("live-status");
    if (!document.hidden) {
      try {
        const answer = await fetch(location.pathname, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          const now = page.querySelector("meta[name=surefoot-live]");
          seconds = now ? +now.content : seconds;
          replace(page);
          tag = parts(page).every(part => texts.get(part.id) === part.innerHTML) ? answer.headers.get("ETag") || "" : "";
        }
        status.textContent = `live, ${new Date().toLocaleTimeString()}`;
        status.className = "";
      } catch (error) {
        status.textContent = "the server does not answer any more; below is what it sent last";
        status.className = "lost";
      }
    }
    setTimeout(poll, 1000 * seconds);
  }

  document.documentElement.classList.add("scripted");
  begin(document);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(chart => chart.draw()));
  if (live) setTimeout(poll, 1000 * seconds);
})();
