"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const darkened = JSON.parse(document.getElementById("darkened").textContent);
  const config = JSON.parse(document.getElementById("config").textContent);
  const views = new Map();

  // Every colour of the light mode becomes that of the dark mode, wherever it stands in a specification.
  function inMode(value) {
    if (Array.isArray(value)) return value.map(inMode);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, key === "values" ? one : inMode(one)]));
    return dark.matches && Object.hasOwn(darkened, value) ? darkened[value] : value;
  }

  // Long names are cut on a narrow screen, or nothing would be left for the chart.
  const configFor = (width) => ({ ...config, background: "transparent", axis: { ...config.axis, labelLimit: width < 500 ? 150 : 260 } });

  async function draw(element, spec) {
    const width = element.clientWidth;
    if (!width) return; // inside closed details: drawn when they open
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: configFor(width) };
    const result = await vegaEmbed(element, inMode(spec), options);
    element.dataset.drawn = "yes";
    views.set(element.id, result.view);
    const groups = document.querySelector(`fieldset[data-chart="${element.id.slice("plot-".length)}"]`);
    if (groups) show(groups);
  }

  function show(groups) {
    const on = [...groups.querySelectorAll("input:checked")].map((input) => input.value);
    const view = views.get(`plot-${groups.dataset.chart}`);
    if (view) view.signal("shown", on).runAsync();
  }

  const charts = [...document.querySelectorAll("script.spec")].map((script) => [
    document.getElementById(script.dataset.for),
    JSON.parse(script.textContent),
  ]);
  const drawAll = () => Promise.all(charts.map(([element, spec]) => draw(element, spec)));

  for (const groups of document.querySelectorAll("fieldset.groups")) {
    groups.hidden = false;
    groups.addEventListener("change", () => show(groups));
  }
  for (const details of document.querySelectorAll("details"))
    details.addEventListener("toggle", () => {
      for (const [element, spec] of charts) if (details.contains(element) && !element.dataset.drawn) draw(element, spec);
    });
  dark.addEventListener("change", drawAll);
  drawAll().then(() => (document.documentElement.dataset.ready = "yes"));
})();
