// What both pages of `watch` share: asking for what is new, and saying when nobody answers.
const { colours, symbols, dashes, neutral } = JSON.parse(document.getElementById("look").textContent);
const LATER_SECONDS = 3;

const element = (name, text, properties = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return Object.assign(made, properties);
};

const row = (cells, name = "td") => {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => cell instanceof Node ? cell : element(name, cell)));
  return made;
};

const shownNumber = (value) => typeof value === "number" ? Number(value.toPrecision(4)).toString() : "";

const sayProblems = (lines) => document.getElementById("problems")
  .replaceChildren(...lines.map((line) => element("p", line, { className: "card warning" })));

// Asks again and again, each time for what is new since the last answer.
const poll = async (kind, query, take) => {
  const pace = document.getElementById("pace"), main = document.querySelector("main");
  for (;;) {
    let wait = LATER_SECONDS;
    try {
      const answer = await fetch(`data?${new URLSearchParams(query())}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const told = await answer.json();
      if (told.kind !== kind) return window.location.reload();
      take(told);
      wait = told.poll_seconds;
      main.classList.remove("stale");
      pace.textContent = `Looked at ${new Date().toLocaleTimeString()}; again every ${wait < 1.5 ? "second" : `${Math.round(wait)} seconds`}.`;
    } catch (error) {
      main.classList.add("stale");
      pace.textContent = `No answer: \`sparsepo watch\` has ended, or cannot be reached (${error.message}). What is below was known before; asked again every ${LATER_SECONDS} seconds.`;
    }
    await new Promise((done) => setTimeout(done, wait * 1000));
    while (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
};

// The element of a chart, as the report has them; charts.js draws it.
const chartElement = (name, title) => {
  const figure = element("figure", undefined, { className: "chart", id: `chart-${name}` });
  const plot = element("div", undefined, { className: "plot" });
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", title);
  plot.style.height = "240px";
  figure.append(element("figcaption", title), element("div", undefined, { className: "legend" }), plot);
  return figure;
};
