// The page of a sweep: one curve per trial of the metric that is chosen, and what became of each.
const known = new Map(); // run -> curve
const asked = { version: 0, rest: "", metric: "loss" };
const choice = document.getElementById("metric"), place = document.getElementById("curves");
const figure = chartElement("trials", "Trials");
figure.querySelector(".plot").style.height = "360px";
place.append(figure);
let rows = [], keys = [];

const styleOf = (number) => ({
  colour: colours[number % colours.length], symbol: symbols[number % symbols.length],
  dash: dashes[Math.floor(number / colours.length) % dashes.length],
});

const pointOf = (trial) => keys.filter((key) => trial.point[key]).map((key) => `${key} = ${trial.point[key]}`).join(", ");

const draw = () => {
  figure.querySelector("figcaption").textContent = asked.metric;
  const series = rows.flatMap((trial) => trial.runs.filter((run) => known.get(run)?.x.length).map((run) => {
    const { label, x, y } = known.get(run);
    const about = [label, pointOf(trial), trial.state].filter(Boolean).join("\n");
    return {
      name: label, kind: x.length < 20 ? "lines+marks" : "lines", ...styleOf(trial.number), faint: false, x, y,
      hover: x.map((step, i) => `${about}\nstep ${step}\n${asked.metric} ${shownNumber(y[i])}`),
    };
  }));
  window.drawLive(figure, () => ({
    name: "trials", title: asked.metric, x: { title: "optimizer step", log: false }, y: { title: asked.metric, log: false }, levels: [], series,
  }));
};

const drawTable = () => {
  const head = row(["trial", "state", ...keys, "how far"], "th");
  document.getElementById("trials").replaceChildren(head, ...rows.map((trial) => {
    const cell = element("span", undefined, { className: "run" });
    cell.style.setProperty("--run", styleOf(trial.number).colour);
    trial.runs.forEach((run, i) => {
      const seed = run.match(/\/seed-([^/]*)$/)?.[1];
      cell.append(i ? " " : "", element("a", seed === undefined ? `${trial.number}` : `${i ? "" : `${trial.number} `}seed ${seed}`, { href: `run/${run}/` }));
    });
    if (!trial.runs.length) cell.append(String(trial.number));
    const first = element("td");
    first.append(cell);
    return row([first, trial.state, ...keys.map((key) => trial.point[key] ?? ""), trial.detail]);
  }));
};

const drawChoice = (metrics) => {
  const names = metrics.includes(asked.metric) ? metrics : [asked.metric, ...metrics];
  choice.replaceChildren(...names.map((name) => element("option", name, { value: name, selected: name === asked.metric })));
};
choice.addEventListener("change", () => {
  Object.assign(asked, { metric: choice.value, version: 0 });
  known.clear();
  draw();
});

poll("sweep", () => ({ metric: asked.metric, since: asked.version, rest: asked.rest }), (told) => {
  if (told.metric !== asked.metric) return; // another was chosen meanwhile
  for (const curve of told.curves) known.set(curve.run, curve);
  Object.assign(asked, { version: told.version, rest: told.rest });
  if (told.rows) {
    ({ rows, keys } = told);
    document.getElementById("headline").textContent = told.headline;
    sayProblems(told.damage ? [told.damage] : []);
    drawChoice(told.metrics);
    drawTable();
  }
  if (told.rows || told.curves.length) draw();
});
