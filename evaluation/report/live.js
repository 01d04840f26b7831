// The page of a run: its curves grow by what is new, everything else is written when it changes.
const curves = { train: { steps: [], values: {}, tail: null, every: 1 }, validation: { steps: [], values: {}, tail: null, every: 1 } };
const seen = { epoch: 0, state: "", rest: "" };
const charts = new Map(); // name -> its figure and what the server says of it
let layoutOfGroups = "", groups = [], weighing = "reward_mask", heldOut = {};

const grow = (curve, told) => {
  curve.steps.length = Math.min(curve.steps.length, told.from);
  for (const mine of Object.values(curve.values)) mine.length = Math.min(mine.length, curve.steps.length);
  for (const [key, values] of Object.entries(told.values)) {
    const mine = curve.values[key] ??= [];
    while (mine.length < curve.steps.length) mine.push(null);
    mine.push(...values);
  }
  curve.steps.push(...told.steps);
  for (const mine of Object.values(curve.values)) while (mine.length < curve.steps.length) mine.push(null);
  Object.assign(curve, { tail: told.tail, every: told.every });
};

const points = (curve, key) => {
  const x = [], y = [];
  (curve.values[key] ?? []).forEach((value, i) => { if (value !== null) { x.push(curve.steps[i]); y.push(value); } });
  const last = curve.tail?.values[key]?.[0];
  if (last !== undefined && last !== null) { x.push(curve.tail.steps[0]); y.push(last); }
  return { x, y };
};

// Over a tenth of the points; a longer past would hide what happens now.
const smoothed = (y) => {
  const window = Math.max(1, Math.min(50, Math.floor(y.length / 10)));
  let sum = 0;
  return y.map((value, i) => {
    sum += value - (i >= window ? y[i - window] : 0);
    return sum / Math.min(i + 1, window);
  });
};

const record = (name, { title, unit, keys, labels, is_smooth: isSmooth }) => {
  const several = keys.length > 1, series = [];
  keys.forEach((key, i) => {
    const label = several ? labels[i] : "training", colour = colours[i];
    const look = { colour, symbol: symbols[i], dash: "solid" };
    const train = points(curves.train, key), validation = points(curves.validation, `validation/${key}`);
    if (train.x.length) {
      if (isSmooth && train.y.length >= 20) {
        series.push({ name: label, kind: "lines", ...look, faint: true, ...train });
        series.push({ name: label, kind: "lines", ...look, faint: false, x: train.x, y: smoothed(train.y) });
      } else {
        series.push({ name: label, kind: train.x.length < 20 ? "lines+marks" : "lines", ...look, faint: false, ...train });
      }
    }
    if (validation.x.length) {
      const other = several ? { ...look, dash: "dash" } : { colour: colours[1], symbol: symbols[1], dash: "dash" };
      series.push({ name: several ? `${label}, validation` : "validation", kind: "lines+marks", ...other, faint: false, ...validation });
    }
  });
  return { name, title, x: { title: "optimizer step", log: false }, y: { title: unit, log: false }, levels: [], series };
};

const drawGroups = () => {
  const now = JSON.stringify(groups);
  if (now !== layoutOfGroups) {
    layoutOfGroups = now;
    const place = document.getElementById("groups");
    const wasOpen = new Map([...place.querySelectorAll("details.group")].map((d) => [d.dataset.title, d.open]));
    place.replaceChildren(...groups.map((group) => {
      const section = element("details", undefined, { className: "group", open: wasOpen.get(group.title) ?? group.is_open });
      section.dataset.title = group.title;
      const grid = element("div", undefined, { className: "grid" });
      for (const chart of group.charts) {
        const name = chart.keys[0].replace(/[^a-zA-Z0-9]+/g, "-");
        if (!charts.has(name)) charts.set(name, { figure: chartElement(name, chart.title) });
        Object.assign(charts.get(name), chart);
        grid.append(charts.get(name).figure);
      }
      section.append(element("summary", group.title), grid);
      return section;
    }));
  }
  for (const [name, chart] of charts) window.drawLive(chart.figure, () => record(name, chart));
  document.getElementById("thinned").textContent = curves.train.every > 1 ? `A point of training's curves is the mean of ${curves.train.every} steps.` : "";
};

const drawValidation = () => {
  const { steps, values } = curves.validation, place = document.getElementById("validation");
  if (!steps.length) return place.replaceChildren(element("p", "No validation yet.", { className: "note" }));
  const order = groups.flatMap((g) => g.charts.flatMap((c) => c.keys.map((key) => `validation/${key}`)));
  const table = element("table"), last = steps.length - 1;
  const known = order.filter((key) => key in values && values[key][last] !== null);
  const isSeveral = last > 0;
  table.append(row(["metric", ...(isSeveral ? [`step ${steps[0]}`] : []), `step ${steps[last]}`], "th"));
  for (const key of known) {
    table.append(row([key.replace("validation/", ""), ...(isSeveral ? [shownNumber(values[key][0])] : []), shownNumber(values[key][last])]));
  }
  const scroll = element("div", undefined, { className: "scroll" });
  scroll.append(table);
  place.replaceChildren(scroll);
};

const drawSamples = ({ of, samples = [] }) => {
  document.getElementById("samples-title").textContent = of ? `Samples of ${of}` : "Samples";
  const place = document.getElementById("samples");
  if (!samples.length) return place.replaceChildren(element("p", "None: see below for what brings them.", { className: "note" }));
  const table = element("table", undefined, { className: "samples" });
  table.append(row(["prompt", "before", "after", "reward"], "th"));
  for (const s of samples) {
    const cells = [["prompt", s.prompt], ["before", s.start_text], ["after", s.policy_text]].map(([label, text]) => {
      const cell = element("td", undefined, { className: "text" });
      cell.dataset.label = label;
      cell.append(element("div", text ?? ""));
      return cell;
    });
    const reward = element("td", "policy_reward" in s ? `${shownNumber(s.start_reward)} → ${shownNumber(s.policy_reward)}` : "", { className: "n" });
    reward.dataset.label = "reward";
    table.append(row([...cells, reward]));
  }
  const scroll = element("div", undefined, { className: "scroll" });
  scroll.append(table);
  place.replaceChildren(scroll);
};

const drawWeights = () => {
  const { of, responses = [] } = heldOut, place = document.getElementById("weights");
  document.getElementById("weights-title").textContent = of ? `Token weights of ${of}` : "Token weights";
  if (!responses.length) return place.replaceChildren(element("p", "None: see below for what brings them.", { className: "note" }));
  const largest = Math.max(1e-9, ...responses.flatMap((r) => r[weighing] ?? [0]));
  const choice = [["reward_mask", "reward mask"], ["kl_mask", "KL mask"]].map(([mask, label]) => {
    const button = element("button", label, { type: "button" });
    button.setAttribute("aria-pressed", String(mask === weighing));
    button.addEventListener("click", () => { weighing = mask; drawWeights(); });
    return button;
  });
  const bar = element("p");
  bar.append(...choice, ` The darker, the more a token counts: from 0 to ${shownNumber(largest)}. Point at a token, or tap it.`);
  const heat = element("div", undefined, { className: "card heat" });
  for (const response of responses) {
    const line = element("div");
    line.append(element("span", response.side, { className: "side" }));
    (response.tokens ?? []).forEach((text, i) => {
      const alpha = 0.85 * Math.max(0, response[weighing]?.[i] ?? 0) / largest;
      const token = element("span", text, { className: "token", tabIndex: 0 });
      token.style.background = `rgba(52,104,169,${alpha.toFixed(3)})`;
      if (alpha > 0.55) token.style.color = "#fff";
      token.dataset.hint = [["reward mask", "reward_mask"], ["KL mask", "kl_mask"], ["token KL, nats", "token_kl"]]
        .filter(([, key]) => response[key]).map(([label, key]) => `${label} ${shownNumber(response[key][i])}`).join("\n");
      line.append(token);
    });
    heat.append(line);
  }
  place.replaceChildren(bar, heat);
};

const hint = document.getElementById("hint");
const showHint = (token) => {
  hint.replaceChildren(...token.dataset.hint.split("\n").map((line) => element("div", line)));
  hint.hidden = false;
  const at = token.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - hint.offsetWidth - 8);
  hint.style.left = `${Math.max(8, left) + window.scrollX}px`;
  hint.style.top = `${at.bottom + window.scrollY + 4}px`;
};
for (const name of ["mouseover", "focusin", "click"]) {
  document.getElementById("weights").addEventListener(name, ({ target }) => { if (target.dataset.hint) showHint(target); });
}
for (const name of ["mouseout", "focusout"]) document.getElementById("weights").addEventListener(name, () => { hint.hidden = true; });

const takeState = (state) => {
  document.getElementById("headline").textContent = state.headline;
  document.getElementById("stages").replaceChildren(...state.stages.map((s) => row([s.stage, s.state, s.detail])));
  sayProblems([...state.damage, ...state.warnings.flatMap(([step, lines]) => lines.map((line) => `step ${step}: ${line}`))]);
  seen.state = state.digest;
};

const takeRest = (rest) => {
  const isNew = JSON.stringify(heldOut) !== JSON.stringify(rest.held_out);
  ({ groups, held_out: heldOut, digest: seen.rest } = rest);
  document.getElementById("held-out").hidden = !heldOut.absent;
  if (isNew) {
    drawSamples(heldOut);
    drawWeights();
    document.getElementById("absent").replaceChildren(...(heldOut.absent ?? []).map((line) => element("li", line)));
  }
};

poll("run", () => ({
  ...seen, train: curves.train.steps.length, validation: curves.validation.steps.length,
}), (told) => {
  const drawn = () => JSON.stringify(Object.values(curves).map((curve) => [curve.steps.length, curve.tail]));
  const before = drawn(), isAnew = told.epoch !== seen.epoch;
  if (isAnew) for (const curve of Object.values(curves)) Object.assign(curve, { steps: [], values: {}, tail: null });
  for (const kind of ["train", "validation"]) grow(curves[kind], told.curves[kind]);
  seen.epoch = told.epoch;
  if (told.state) takeState(told.state);
  if (told.rest) takeRest(told.rest);
  if (!isAnew && !told.rest && before === drawn()) return;
  drawGroups();
  drawValidation();
});
