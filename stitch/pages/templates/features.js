"use strict";
(() => {
  const data = JSON.parse(document.getElementById("features-data").textContent);
  const { pairs, pieces, models, tokens } = data;
  const SIDES = ["a", "b"];
  const PART = 100; // entries listed at a time
  const byNumber = new Map(pairs.map((pair) => [pair.b, pair]));
  const ofA = new Map(pairs.map((pair) => [pair.a, pair]));
  const $ = (id) => document.getElementById(id);
  let shown = [];
  let listed = 0;
  let current = null;

  // Text from a corpus goes into the page as text nodes alone.
  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made && key !== "style") made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  const seen = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const words = (context) => context.tokens.map((token) => pieces[token]).join("");
  const margin = (pair) => pair.score - pair.null_score;
  const keys = {
    score: (pair) => -pair.score,
    margin: (pair) => -margin(pair),
    fires: (pair) => -pair.fires[1],
    number: (pair) => pair.b,
  };

  function matches(pair, wanted) {
    if (!wanted) return true;
    if (String(pair.a) === wanted || String(pair.b) === wanted) return true;
    pair.text ??= pair.contexts.map(words).join("\n").toLowerCase();
    return pair.text.includes(wanted);
  }

  function filter() {
    const wanted = $("search").value.toLowerCase();
    const key = keys[$("sort").value];
    shown = pairs.filter((pair) => matches(pair, wanted)).sort((one, other) => key(one) - key(other) || one.b - other.b);
    const rest = data.left_out ? `; the ${data.left_out.toLocaleString("en")} others are in features.json` : "";
    $("found").textContent = `${shown.length.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} pairs${rest}`;
    $("list").replaceChildren();
    listed = 0;
    list();
  }

  function list() {
    for (const pair of shown.slice(listed, listed + PART)) {
      const peak = pair.contexts[pair.top[1][0] ?? 0];
      const text = peak ? peak.tokens.slice(Math.max(0, peak.at - 3), peak.at + 3).map((token) => pieces[token]).join("") : "";
      const numbers = element("span", { className: "numbers" }, `r ${pair.score.toFixed(3)}, control ${pair.null_score.toFixed(3)}`);
      const link = element("a", { href: `#feature-${pair.b}` }, `B ${pair.b} · A ${pair.a}  `, element("span", {}, seen(text.trim())), numbers);
      $("list").append(element("li", {}, link));
    }
    listed = Math.min(listed + PART, shown.length);
    $("more").hidden = listed >= shown.length;
    mark();
  }

  // `scrollIntoView` would move the page as well.
  function bringIntoList(link) {
    const [box, list] = [link.getBoundingClientRect(), $("list")];
    const frame = list.getBoundingClientRect();
    if (box.top < frame.top || box.bottom > frame.bottom) list.scrollTop += box.top - frame.top - frame.height / 3;
  }

  function mark() {
    for (const link of $("list").querySelectorAll("a")) {
      const isCurrent = current && link.hash === `#feature-${current.b}`;
      if (isCurrent) {
        link.setAttribute("aria-current", "true");
        bringIntoList(link);
      } else link.removeAttribute("aria-current");
    }
  }

  // The background is the code of the side that the text was chosen for, the line below that of its partner.
  function textOf(pair, context, side) {
    const other = 1 - side;
    const codes = SIDES.map((name) => new Map(context[name]));
    const peak = codes[side].get(context.at) ?? 0;
    const box = element("p", { className: "context" }, element("span", { className: "code" }, peak.toPrecision(3)));
    context.tokens.forEach((token, place) => {
      const [own, partner] = [side, other].map((one) => (codes[one].get(place) ?? 0) / pair.highest[one]);
      const text = element("span", { className: "token" }, seen(pieces[token]));
      if (own) text.style.backgroundColor = `color-mix(in srgb, var(--${SIDES[side]}) ${Math.round(12 + 43 * own)}%, transparent)`;
      if (partner) text.style.borderBottomColor = `color-mix(in srgb, var(--${SIDES[other]}) ${Math.round(30 + 70 * partner)}%, transparent)`;
      if (own || partner)
        text.title = SIDES.map((name, one) => `${name.toUpperCase()} ${(codes[one].get(place) ?? 0).toPrecision(3)}`).join(", ");
      if (place === context.at) text.classList.add("peak");
      box.append(text);
    });
    return box;
  }

  // Heights are logarithmic: most codes are low, and the few high ones should be seen.
  function histogram(pair, side) {
    const counts = pair.histograms[side];
    const most = Math.log1p(Math.max(...counts, 1));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "bars");
    svg.setAttribute("viewBox", `0 0 ${counts.length} 10`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Codes of feature ${pair[SIDES[side]]}: ${counts.join(", ")} tokens in equal steps`);
    counts.forEach((count, bar) => {
      const height = (10 * Math.log1p(count)) / most;
      const rect = document.createElementNS(svg.namespaceURI, "rect");
      for (const [key, value] of Object.entries({ x: bar + 0.05, y: 10 - height, width: 0.9, height })) rect.setAttribute(key, value);
      const title = document.createElementNS(svg.namespaceURI, "title");
      title.textContent = `${count.toLocaleString("en")} tokens`;
      rect.append(title);
      svg.append(rect);
    });
    const ends = element("div", { className: "bars-range" }, element("span", {}, "0"), element("span", {}, "tokens by code, log scale"), element("span", {}, pair.highest[side].toPrecision(3)));
    return [svg, ends];
  }

  function sideOf(pair, side) {
    const name = SIDES[side];
    const share = (100 * pair.fires[side]) / tokens;
    const heading = element("h4", {}, `${name.toUpperCase()}: feature ${pair[name]} of ${models[side]}`);
    const facts = element("p", { className: "fact" }, `fires on ${share.toPrecision(2)} % of tokens; highest code ${pair.highest[side].toPrecision(3)}`);
    const texts = pair.top[side].map((number) => textOf(pair, pair.contexts[number], side));
    return element("div", { className: `side ${name}` }, heading, facts, ...histogram(pair, side), ...texts);
  }

  function nearest(pair) {
    const line = element("p", {}, "Most correlated features of A: ");
    pair.strongest.forEach(([feature, correlation], number) => {
      const partner = ofA.get(feature);
      const text = `A ${feature} (${correlation.toFixed(3)})`;
      line.append(number ? ", " : "");
      if (partner && partner !== pair) line.append(element("a", { href: `#feature-${partner.b}` }, text), ` matched to B ${partner.b}`);
      else line.append(partner === pair ? element("strong", {}, text) : text);
    });
    return line;
  }

  function open(pair) {
    current = pair;
    const cosine = pair.cosine === undefined ? "" : `, cosine of the decoder rows ${pair.cosine.toFixed(3)}`;
    const facts = `correlation ${pair.score.toFixed(3)}, control ${pair.null_score.toFixed(3)}, margin ${margin(pair).toFixed(3)}${cosine}`;
    $("pair").replaceChildren(
      element("h3", {}, `Feature ${pair.b} of B and ${pair.a} of A`),
      element("p", {}, facts),
      nearest(pair),
      element("div", { className: "sides" }, sideOf(pair, 0), sideOf(pair, 1)),
    );
    mark();
  }

  function follow(scroll) {
    const wanted = /^#feature-(\d+)$/.exec(location.hash);
    if (!wanted) return false;
    const pair = byNumber.get(Number(wanted[1]));
    if (pair) open(pair);
    else $("pair").replaceChildren(element("p", {}, `Feature ${wanted[1]} of B is not among the pairs on this page; features.json has it if it is matched.`));
    if (scroll) $("browser").scrollIntoView();
    return true;
  }

  $("list").addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("li")?.[step]?.querySelector("a");
    if (!next) return;
    event.preventDefault();
    next.focus();
    location.hash = next.hash;
  });
  $("search").addEventListener("input", filter);
  $("sort").addEventListener("change", filter);
  $("more").addEventListener("click", list);
  addEventListener("hashchange", () => follow(false));
  $("browser").hidden = false;
  filter();
  if (!follow(true) && shown.length) open(shown[0]);
})();
