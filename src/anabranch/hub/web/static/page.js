// Live results under the search box, and live progress of a run. Everything can be read without it.
"use strict";
(() => {
  const box = document.querySelector("#q"), results = document.querySelector("#results");
  if (box && results) {
    let timer, latest = 0;
    box.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        const query = box.value.trim(), mine = ++latest;
        if (!query) return;
        const answer = await fetch("/papers?q=" + encodeURIComponent(query), { headers: { accept: "text/html" } });
        if (!answer.ok || mine !== latest) return;
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        results.replaceChildren(...page.querySelector("#results").childNodes);
        document.querySelector("h1").textContent = page.querySelector("h1").textContent;
        document.querySelector("#how").replaceChildren(...page.querySelector("#how").childNodes);
        history.replaceState(null, "", "/papers?q=" + encodeURIComponent(query));
      }, 150);
    });
  }

  const run = document.querySelector("#run[data-run]");
  if (!run || !["queued", "running"].includes(run.dataset.state)) return;
  const byId = (id) => document.getElementById(id);
  const expected = Number(run.dataset.expected) || 0;
  const source = new EventSource("/api/runs/" + run.dataset.run + "/events"); // all of it: names say what is here already
  const number = (x) => (Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(3) : String(Number(x.toPrecision(4))));
  const make = (tag, text, kind) => Object.assign(document.createElement(tag), { textContent: text, className: kind || "" });
  let startedAt = null;

  const on = (name, act) => source.addEventListener(name, (message) => act(JSON.parse(message.data)));
  const seen = (event) => {
    byId("elapsed").textContent = event.at_s.toFixed(0) + " s";
    if (expected) byId("progress").value = Math.min(0.99, event.at_s / expected);
  };
  on("start", (event) => {
    byId("state").textContent = "running";
    byId("state").className = "chip running";
    byId("waiting")?.remove();
    startedAt = Date.now();
    seen(event);
  });
  on("stage", (event) => {
    let row = [...byId("stages").children].find((li) => li.dataset.name === event.name);
    if (!row) {
      row = byId("stages").appendChild(make("li", ""));
      row.dataset.name = event.name;
      row.append(make("b", event.name), " ", make("span", ""));
    }
    row.lastElementChild.textContent =
      event.seconds != null ? "done in " + event.seconds.toFixed(1) + " s" : event.total ? Math.round((100 * event.done) / event.total) + " %" : "";
    seen(event);
  });
  on("measure", (event) => {
    let cell = [...byId("measures").children].find((div) => div.dataset.name === event.name);
    if (!cell) {
      cell = byId("measures").appendChild(make("div", ""));
      cell.dataset.name = event.name;
    }
    cell.replaceChildren(make("dt", event.name), make("dd", number(event.value) + " " + (event.unit || "")));
    seen(event);
  });
  const curves = new Map(), changed = new Set();
  on("series", (event) => {
    seen(event);
    (curves.get(event.name) || curves.set(event.name, []).get(event.name)).push(event);
    if (!changed.size) requestAnimationFrame(() => {
      changed.forEach(draw);
      changed.clear();
    });
    changed.add(event.name);
  });
  const draw = (name) => {
    const points = curves.get(name);
    if (points.length < 2) return;
    let figure = [...byId("curves").children].find((f) => f.dataset.name === name);
    if (!figure) {
      figure = byId("curves").appendChild(make("figure", "", "curve"));
      figure.dataset.name = name;
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 640 180");
      svg.setAttribute("preserveAspectRatio", "none");
      figure.append(make("figcaption", name), svg);
    }
    const svg = figure.querySelector("svg"), keys = [...new Set(points.flatMap((p) => Object.keys(p.values)))];
    const values = points.flatMap((p) => Object.values(p.values)).filter((v) => v !== null);
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b)), first = points[0].x, last = points[points.length - 1].x;
    svg.replaceChildren(
      ...keys.map((key, i) => {
        const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
        line.setAttribute("class", "line" + (i % 5));
        line.setAttribute(
          "points",
          points.filter((p) => p.values[key] != null)
            .map((p) => (640 * (p.x - first)) / (last - first || 1) + "," + 180 * (1 - (p.values[key] - low) / (high - low || 1))).join(" "),
        );
        return line;
      }),
    );
  };
  on("warning", (event) => {
    if ([...run.querySelectorAll(".notice")].some((div) => div.textContent === event.text)) return;
    run.insertBefore(make("div", event.text, "notice small"), byId("progress"));
  });
  on("over", () => {
    source.close();
    location.reload(); // the finished page, with verdicts, figures and artefacts, as the server writes it
  });
  setInterval(async () => {
    const log = byId("log");
    if (!log.closest("details").open) return;
    const answer = await fetch("/runs/" + run.dataset.run + "/log");
    if (answer.ok) log.textContent = await answer.text();
  }, 2000);
  setInterval(() => {
    if (startedAt && expected) byId("progress").value = Math.min(0.99, (Date.now() - startedAt) / 1000 / expected);
  }, 500);
})();
