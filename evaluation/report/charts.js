// Draws the page's figures with Plotly: each from the JSON beside its place, once it is in sight.
(() => {
  const escaped = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c])
    .replace(/\n/g, "<br>") || "\u00a0";
  const shown = (value) => typeof value === "number" ? Number(value.toPrecision(5)).toString() : value;
  const glyphs = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", x: "✖", star: "★", cross: "✚", "triangle-down": "▼" };
  const lines = { solid: "━", dash: "╍", dot: "┅", dashdot: "┉" };
  const coarse = window.matchMedia("(pointer: coarse)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const paper = { ink: "#1f2328", soft: "#5b6470", line: "#e3e6ea", card: "#ffffff" };
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(Object.entries(paper).map(([k, v]) => [k, style.getPropertyValue(`--${k}`).trim() || v]));
  };

  const errors = (middle, low, high, colour) => low && {
    type: "data", symmetric: false, thickness: 1.2, width: 4, color: colour,
    array: high.map((v, i) => v === null ? 0 : Math.max(0, v - middle[i])),
    arrayminus: low.map((v, i) => v === null ? 0 : Math.max(0, middle[i] - v)),
  };

  const hover = (s, record) => s.hover ?? s.y.map((y, i) => {
    const range = s.y_low ? ` [${shown(s.y_low[i])}, ${shown(s.y_high[i])}]` : "";
    return `${s.name}\n${record.x.title || ""} ${shown(s.x[i])}\n${record.y.title} ${shown(y)}${range}`;
  });

  // Categories are told apart by their place: two of one name stay two.
  const categories = (record) => {
    const found = [];
    for (const s of record.series) for (const x of s.x) if (typeof x === "string" && !found.includes(x)) found.push(x);
    return found;
  };

  const label = (name) => name.split("\n").map((line) => escaped(line.length > 16 ? `${line.slice(0, 15)}…` : line)).join("<br>");

  const traces = (record, tone) => {
    const places = new Map(categories(record).map((name, i) => [name, i]));
    return record.series.map((s) => ({
      type: s.kind === "bars" ? "bar" : "scatter",
      mode: { lines: "lines", marks: "markers", "lines+marks": "lines+markers" }[s.kind] + (s.labels ? "+text" : ""),
      x: s.x.map((x) => typeof x === "string" ? places.get(x) : x), y: s.y,
      name: escaped(s.name), opacity: s.faint ? 0.3 : 1, showlegend: !s.faint, legendgroup: s.name,
      line: { color: s.colour, dash: s.dash, width: s.faint ? 1 : 2 },
      marker: { color: s.colour, symbol: s.symbol, size: 9 },
      error_x: errors(s.x, s.x_low, s.x_high, s.colour),
      error_y: errors(s.y, s.y_low, s.y_high, s.kind === "bars" ? tone.ink : s.colour),
      hoverinfo: s.faint ? "skip" : "text", hovertext: hover(s, record).map(escaped), text: s.labels?.map(escaped) ?? "", textposition: s.labels ? "top right" : "none", textfont: { size: 11, color: tone.soft },
      cliponaxis: false,
    }));
  };

  const layout = (record, tone) => {
    const names = categories(record);
    const axis = (a) => ({
      title: { text: escaped(a.title), standoff: 8, font: { size: 12 } }, type: a.log ? "log" : "linear", rangemode: a.zero ? "tozero" : "normal", automargin: true,
      gridcolor: tone.line, zerolinecolor: tone.line, linecolor: tone.line, tickfont: { size: 11 }, exponentformat: "power",
    });
    const x = axis(record.x);
    if (names.length) Object.assign(x, { tickmode: "array", ticklabeloverflow: "allow", tickvals: names.map((_, i) => i), ticktext: names.map(label) });
    return {
      xaxis: x, yaxis: axis(record.y), barmode: "overlay", bargap: 0.4, hovermode: "closest",
      font: { family: "system-ui, sans-serif", color: tone.ink, size: 12 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 48, r: 12, t: 30, b: 40 },
      showlegend: false, dragmode: coarse.matches ? false : "zoom", // a finger scrolls the page
      hoverlabel: { bgcolor: tone.card, bordercolor: tone.soft, font: { color: tone.ink, size: 12 }, align: "left", namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: tone.soft, activecolor: tone.ink },
      shapes: record.levels.map((l) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: l.y, y1: l.y, layer: "below", line: { color: tone.soft, width: 1, dash: "dot" } })),
      annotations: record.levels.map((l) => ({ xref: "paper", x: 1, xanchor: "right", y: record.y.log ? Math.log10(l.y) : l.y, yanchor: "bottom", showarrow: false, text: escaped(l.label), font: { size: 11, color: tone.soft }, bgcolor: tone.card, opacity: 0.85, borderpad: 0 })),
    };
  };

  const save = (text, type, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  // A name that a table's program would read as a formula gets a quote before it.
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  const csv = (record) => {
    const keys = ["x", "x_low", "x_high", "y", "y_low", "y_high"].filter((k) => record.series.some((s) => s[k]));
    const rows = [["series", ...keys]];
    for (const s of record.series) {
      const hasRaw = !s.faint && record.series.some((r) => r.faint && r.name === s.name);
      const name = hasRaw ? `${s.name} (running mean)` : s.name;
      s.x.forEach((_, i) => rows.push([name, ...keys.map((k) => s[k]?.[i])]));
    }
    return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  };

  // On white, with title and legend: a picture for a text, whatever the page looks like.
  const picture = (place, record, format) => Plotly.downloadImage({
    data: traces(record, paper).map((trace, i) => ({ ...trace, visible: place.data[i].visible ?? true, text: place.data[i].text, textposition: place.data[i].textposition })),
    layout: { ...layout(record, paper), xaxis: { ...layout(record, paper).xaxis, range: place.layout.xaxis.range, autorange: false },
      yaxis: { ...layout(record, paper).yaxis, range: place.layout.yaxis.range, autorange: false },
      paper_bgcolor: "#fff", plot_bgcolor: "#fff", showlegend: place.data.length > 1, legend: { orientation: "h", y: -0.25 },
      title: { text: escaped(record.title), font: { size: 14 }, x: 0.02 }, margin: { l: 60, r: 20, t: 50, b: 60 } },
  }, { format, filename: record.name, width: 900, height: 560, scale: format === "png" ? 2 : 1 });

  const button = (name, title, click) => ({
    name, title, click, icon: { width: 30, height: 16, svg: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 16"><text x="15" y="13" text-anchor="middle" font-size="13" font-weight="600">${name}</text></svg>` },
  });

  // What is drawn: figure element -> its record, and the names that the reader hid.
  const drawn = new Map();
  const records = new Map();
  const recordOf = (figure) => {
    if (!records.has(figure)) records.set(figure, JSON.parse(figure.querySelector("script.figure").textContent));
    return records.get(figure);
  };

  const legends = new Map(); // figure -> what its legend says: entries are kept while it is the same
  const legend = (figure, redraw) => {
    const record = recordOf(figure), hidden = drawn.get(figure);
    const names = [...new Set(record.series.filter((s) => !s.faint).map((s) => s.name))];
    const now = JSON.stringify([names, [...hidden], record.series.map((s) => [s.kind, s.colour])]);
    if (legends.get(figure) === now) return;
    legends.set(figure, now);
    const box = figure.querySelector(".legend"), focused = [...box.children].indexOf(document.activeElement);
    box.replaceChildren(...(names.length < 2 ? [] : names).map((name) => {
      const s = record.series.find((one) => one.name === name && !one.faint);
      const entry = document.createElement("button"), glyph = document.createElement("span");
      entry.type = "button";
      entry.setAttribute("aria-pressed", String(!hidden.has(name)));
      entry.title = "hide or show";
      glyph.style.color = s.colour;
      glyph.setAttribute("aria-hidden", "true");
      glyph.textContent = s.kind === "lines" ? lines[s.dash] : s.kind === "bars" ? "■" : glyphs[s.symbol];
      entry.append(glyph, ` ${name || "\u00a0"}`);
      entry.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        redraw();
      });
      return entry;
    }));
    box.children[focused]?.focus();
  };

  // A name stands on a side of its mark where no other name and no mark is. One that finds no side is
  // left out: hovering over its mark says it.
  const sides = [["top right", 1, -1], ["bottom right", 1, 1], ["top left", -1, -1], ["bottom left", -1, 1],
    ["top center", 0, -1], ["bottom center", 0, 1], ["middle right", 1, 0], ["middle left", -1, 0]];
  const pen = document.createElement("canvas").getContext("2d");
  const placeNames = async (figure) => {
    const place = figure.querySelector(".plot"), record = recordOf(figure), { xaxis, yaxis } = place._fullLayout;
    const named = record.series.map((s, i) => [s, i]).filter(([s, i]) => s.labels && place.data[i].visible !== false);
    if (!named.length) return;
    const marks = named.flatMap(([s]) => s.x.map((_, k) => [xaxis.d2p(s.x[k]), yaxis.d2p(s.y[k])]));
    const taken = [], text = [], textposition = [];
    let number = 0;
    pen.font = "11px system-ui, sans-serif";
    for (const [s] of named) {
      const found = s.labels.map((name) => {
        const [x, y] = marks[number++], width = pen.measureText(name).width, height = 13;
        for (const [side, right, down] of sides) {
          const left = x + right * (5 + width / 2) - width / 2, top = y + down * (5 + height / 2) - height / 2;
          const box = [left, top, left + width, top + height];
          if (box[0] < 0 || box[1] < 0 || box[2] > xaxis._length || box[3] > yaxis._length) continue;
          if (taken.some((b) => box[0] < b[2] && b[0] < box[2] && box[1] < b[3] && b[1] < box[3])) continue;
          if (marks.some(([a, b]) => (a !== x || b !== y) && a > box[0] - 4 && a < box[2] + 4 && b > box[1] - 4 && b < box[3] + 4)) continue;
          taken.push(box);
          return [escaped(name), side];
        }
        return ["", "top right"];
      });
      text.push(found.map(([name]) => name));
      textposition.push(found.map(([, side]) => side));
    }
    await Plotly.restyle(place, { text, textposition }, named.map(([, i]) => i));
  };

  // One per figure: with another Plotly begins the figure anew, without its zoom and its listeners.
  const settings = new Map();
  const configuration = (figure, place) => ({
    responsive: true, displaylogo: false, displayModeBar: true, doubleClick: "autosize",
    modeBarButtons: [
      [button("PNG", "save as PNG", () => picture(place, recordOf(figure), "png")),
        button("SVG", "save as SVG", () => picture(place, recordOf(figure), "svg")),
        button("CSV", "save the numbers as CSV", () => save(csv(recordOf(figure)), "text/csv", `${recordOf(figure).name}.csv`))],
      ["zoomIn2d", "zoomOut2d", "autoScale2d"],
    ],
  });

  const draw = async (figure) => {
    const place = figure.querySelector(".plot"), record = recordOf(figure), isNew = !drawn.has(figure);
    if (isNew) drawn.set(figure, new Set());
    const tone = colours(), hidden = drawn.get(figure);
    const data = traces(record, tone).map((trace, i) => ({ ...trace, visible: !hidden.has(record.series[i].name) }));
    const sheet = layout(record, tone);
    if (!isNew) for (const axis of ["xaxis", "yaxis"]) { // what a reader zoomed into stays in sight
      const { autorange, range } = place._fullLayout[axis];
      if (!autorange) Object.assign(sheet[axis], { autorange: false, range: [...range] });
    }
    if (isNew) settings.set(figure, configuration(figure, place));
    await Plotly.react(place, data, sheet, settings.get(figure));
    await placeNames(figure);
    legend(figure, () => draw(figure));
    if (isNew) place.on("plotly_relayout", () => placeNames(figure)); // zoomed, or another width
    if (isNew) place.on("plotly_click", ({ points: [point] }) => {
      const link = recordOf(figure).series[point.curveNumber].links?.[point.pointNumber];
      if (link) window.location.assign(link);
    });
    figure.dataset.drawn = "true";
  };

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  const figures = [...document.querySelectorAll("figure.chart")];
  for (const figure of figures) seen.observe(figure);
  window.addEventListener("beforeprint", () => { for (const figure of figures) if (!drawn.has(figure)) draw(figure); });
  dark.addEventListener("change", () => { for (const figure of drawn.keys()) draw(figure); });

  // For pages that get new numbers while they are open: a figure is drawn again while it is in sight.
  // What the reader zoomed to and hid stays.
  const inSight = new Set(), stale = new Map();
  const refresh = (figure) => {
    if (!inSight.has(figure) || !stale.has(figure)) return;
    records.set(figure, stale.get(figure)());
    stale.delete(figure);
    draw(figure);
  };
  const watched = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) inSight.add(target); else inSight.delete(target);
      refresh(target);
    }
  }, { rootMargin: "100px" });
  window.drawLive = (figure, makeRecord) => {
    stale.set(figure, makeRecord);
    watched.observe(figure);
    refresh(figure);
  };
})();
