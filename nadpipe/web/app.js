"use strict";
// The explorer: a page is a hash (#/pair/12/345), its data a few small files under data/.

const main = document.getElementById("main");
const status = document.getElementById("status");
const WAYS = {
  active: ["Goes with the images", "texts whose similarity to an image goes with the coefficient along the direction; correlation"],
  nearest: ["Nearest to the direction", "cosine of text and direction"],
  sparse: ["Sparse code of the direction", "weights of the texts that add up to the direction; a minus sign means away from it"],
};

const FIRST = 20; // pairs of a text that are listed at once

// ------------------------------------------------------------------------------------------------------------ data

const kept = new Map();

function load(name) {
  if (!kept.has(name)) kept.set(name, fetchJSON(name));
  return kept.get(name);
}

async function fetchJSON(name) {
  const answer = await fetch(`data/${name}.json`);
  if (!answer.ok) throw new Error(`data/${name}.json: ${answer.status}`);
  return answer.json();
}

async function loadFiring(neuron) {
  const answer = await fetch(`data/firing/${neuron}.bin`);
  if (!answer.ok) throw new Error(`data/firing/${neuron}.bin: ${answer.status}`);
  return new Int8Array(await answer.arrayBuffer());
}

// ------------------------------------------------------------------------------------------------------- elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const link = (href, text, more = {}) => make("a", { href, ...more }, text);
const pairLink = (head, neuron) => link(`#/pair/${head}/${neuron}`, `${head}/${neuron}`);
const textLink = (text) => link(`#/search/${encodeURIComponent(text)}`, text);
const number = (value) => (value === null ? "–" : String(+value.toPrecision(3)));

function table(columns, rows, caption) {
  const cell = (tag, content, at) => make(tag, { class: columns[at].number ? "number" : null, scope: tag === "th" ? "col" : null }, content);
  const head = make("tr", {}, columns.map((column, at) => cell("th", column.title, at)));
  const body = rows.map((row) => {
    const line = make("tr", { "aria-current": row.current ? "true" : null });
    line.append(...(row.cells ?? row).map((content, at) => cell("td", content, at)));
    return line;
  });
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("caption", { class: "unseen" }, caption), make("thead", {}, head), make("tbody", {}, body)));
}

const PAIR_COLUMNS = [
  { title: "pair (head/neuron)" }, { title: "rank", number: true }, { title: "size", number: true },
  { title: "goes with the images" }, { title: "nearest to the direction" },
];

function pairRows(rows, texts) {
  const named = (at) => (at < 0 ? "–" : textLink(texts[at]));
  return rows.map(([head, neuron, rank, size, active, nearest]) =>
    [pairLink(head, neuron), String(rank), number(size), named(active), named(nearest)]);
}

function pages(links) {
  return make("nav", { class: "pages", "aria-label": "Pages" }, links.filter(Boolean));
}

// ---------------------------------------------------------------------------------------------------------- pages

async function home(page = "0") {
  const at = Math.max(0, Number.parseInt(page, 10) || 0);
  const [about, texts, rows] = await Promise.all([load("about"), load("texts"), load(`ranked/${at}`)]);
  const total = about.heads * about.neurons;
  const last = Math.ceil(total / about.page) - 1;
  return [
    "All pairs by size",
    make("p", {}, `${total.toLocaleString("en")} pairs of ${about.heads} heads and ${about.neurons} neurons of ${about.architecture}, `
      + `on ${about.images} images. A pair's size is the root mean square norm of its centred contributions to the embedding.`),
    make("p", {}, "Heads: ", ...Array.from({ length: about.heads }, (_, head) => [link(`#/head/${head}`, `${head}`), " "]).flat()),
    pages([
      at > 0 && link(`#/pairs/${at - 1}`, "← larger", { rel: "prev" }),
      make("span", {}, `page ${at + 1} of ${last + 1}`),
      at < last && link(`#/pairs/${at + 1}`, "smaller →", { rel: "next" }),
    ]),
    table(PAIR_COLUMNS, pairRows(rows, texts), "Pairs by size"),
  ];
}

async function head(which, page = "0") {
  const at = Number(page);
  const [about, texts, found] = await Promise.all([load("about"), load("texts"), load(`heads/${which}`)]);
  const last = Math.ceil(found.pairs.length / about.page) - 1;
  return [
    `Head ${which}`,
    make("p", {}, `Rank ${found.about.rank} of ${about.heads} heads, size ${number(found.about.size)}; `
      + `its first directions explain ${found.about.explained.map((share) => `${number(100 * share)}%`).join(", ")}.`),
    pages([
      Number(which) > 0 && link(`#/head/${which - 1}`, "← head before", { rel: "prev" }),
      at > 0 && link(`#/head/${which}/${at - 1}`, "larger pairs"),
      make("span", {}, `page ${at + 1} of ${last + 1}`),
      at < last && link(`#/head/${which}/${at + 1}`, "smaller pairs"),
      Number(which) < about.heads - 1 && link(`#/head/${+which + 1}`, "next head →", { rel: "next" }),
    ]),
    table(PAIR_COLUMNS, pairRows(found.pairs.slice(at * about.page, (at + 1) * about.page), texts), `Pairs of head ${which}`),
  ];
}

async function neuron(which) {
  const [about, texts, found] = await Promise.all([load("about"), load("texts"), load(`neurons/${which}`)]);
  return [
    `Neuron ${which}`,
    make("p", {}, `Rank ${found.about.rank} of ${about.neurons} neurons, size ${number(found.about.size)}; `
      + `its first directions explain ${found.about.explained.map((share) => `${number(100 * share)}%`).join(", ")}.`),
    neighbours("neuron", +which, about.neurons, (at) => `#/neuron/${at}`),
    make("h2", {}, "Its pairs, one a head"),
    table(PAIR_COLUMNS, pairRows(siblings(found, which), texts), `Pairs of neuron ${which}`),
  ];
}

function siblings(found, which) {
  const first = (pair, way) => pair.texts[way]?.[0]?.[0] ?? -1;
  return found.pairs
    .map((pair) => [pair.head, +which, pair.rank, pair.size, first(pair, "active"), first(pair, "nearest")])
    .sort((one, other) => one[2] - other[2]);
}

function neighbours(name, at, count, address) {
  return pages([
    at > 0 && link(address(at - 1), `← ${name} before`, { rel: "prev" }),
    at < count - 1 && link(address(at + 1), `next ${name} →`, { rel: "next" }),
  ]);
}

async function pair(whichHead, whichNeuron) {
  const [about, texts, found, images, maps] = await Promise.all([
    load("about"), load("texts"), load(`neurons/${whichNeuron}`), load("images"), loadFiring(whichNeuron),
  ]);
  const own = found.pairs[+whichHead];
  if (!own) throw new Error(`no head ${whichHead}`);
  const spatial = about.grid * about.grid;
  const shown = own.images.length;
  const slots = own.images.map((_, at) => at);
  const gallery = (title, told, some) => make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, told),
    make("div", { class: "shots" }, some.map((slot) => {
      const start = (+whichHead * shown + slot) * spatial;
      return shot(own, slot, images[own.images[slot]], maps.subarray(start, start + spatial), about.grid);
    })));
  const toggle = make("input", { type: "checkbox", id: "maps", checked: "", onchange: (event) => main.classList.toggle("plain", !event.target.checked) });
  main.classList.remove("plain");
  return [
    `Pair ${whichHead}/${whichNeuron}`,
    make("p", {}, "Head ", link(`#/head/${whichHead}`, whichHead), ", neuron ", link(`#/neuron/${whichNeuron}`, whichNeuron), "."),
    neighbours("neuron", +whichNeuron, about.neurons, (at) => `#/pair/${whichHead}/${at}`),
    make("div", { class: "sides" },
      make("section", {}, make("h2", {}, "What it is"), make("dl", {},
        ...term("rank", `${own.rank} of ${(about.heads * about.neurons).toLocaleString("en")}`),
        ...term("size", `${number(own.size)}, in units of the embedding`),
        ...term("coefficient", `${number(own.mean)} ± ${number(own.std)}`),
        ...term("writes", `${number(own.write)} a unit of coefficient`),
        ...term("direction", own.sign > 0 ? "along its write vector" : "against its write vector"))),
      make("section", {}, make("h2", {}, "Coefficients along the direction"), spread(own, about.images)),
    ),
    make("div", { class: "sides" }, Object.entries(WAYS).map(([way, [title, told]]) => named(title, told, own.texts[way] ?? [], texts))),
    make("p", {}, toggle, " ", make("label", { for: "maps" }, "show where the pair fires: attention × activation, orange along, blue against")),
    gallery("Top images", "farthest along the direction", slots.slice(0, shown / 2)),
    gallery("Bottom images", "farthest the other way", slots.slice(shown / 2)),
    make("h2", {}, `Pairs of the same neuron`),
    table(PAIR_COLUMNS, pairRows(siblings(found, whichNeuron), texts).map((cells, at) =>
      ({ cells, current: siblings(found, whichNeuron)[at][0] === +whichHead })), "Pairs of the same neuron"),
  ];
}

const term = (name, value) => [make("dt", {}, name), make("dd", {}, value)];

function named(title, told, list, texts) {
  const most = Math.max(...list.map(([, weight]) => Math.abs(weight)), 1e-9);
  const rows = list.map(([text, weight]) => [textLink(texts[text]),
    [make("span", { class: "bar", style: `width:${(3.5 * Math.abs(weight)) / most}rem`, "aria-hidden": "true" }), number(weight)]]);
  return make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, told),
    rows.length ? table([{ title: "text" }, { title: "weight" }], rows, title) : make("p", {}, "No text: the pair does not vary, or got none."));
}

function spread(own, images) {
  const [low, high] = own.reach;
  const most = Math.max(...own.counts);
  const step = 100 / own.counts.length;
  const told = `Histogram over ${images} images, from ${number(low)} to ${number(high)}`;
  const bars = own.counts.map((count, at) => drawn("rect",
    { x: at * step, width: step * 0.9, y: 30 - (28 * count) / most, height: (28 * count) / most }, drawn("title", {}, `${count} images`)));
  return make("figure", {},
    drawn("svg", { class: "spread", viewBox: "0 0 100 32", preserveAspectRatio: "none", role: "img", "aria-label": told }, ...bars),
    make("figcaption", {}, `${told}.`));
}

function shot(own, slot, about, map, grid) {
  const id = own.images[slot];
  const canvas = make("canvas", { width: grid, height: grid, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(grid, grid);
  map.forEach((value, at) => {
    pixels.data.set([...(value >= 0 ? [230, 110, 0] : [0, 90, 220]), Math.min(215, Math.abs(value) * 1.7)], at * 4);
  });
  context.putImageData(pixels, 0, 0);
  const told = [about.label, about.group].filter(Boolean).join(", ");
  return make("figure", {},
    make("div", { class: "shot" }, make("img", { src: `data/images/${id}.jpg`, alt: `image ${id}${told ? `: ${told}` : ""}`, loading: "lazy" }), canvas),
    make("figcaption", {}, `${number(own.values[slot])} · image ${id}${told ? `, ${told}` : ""}`));
}

async function search(encoded) {
  const query = decodeURIComponent(encoded).trim();
  const wanted = query.toLowerCase();
  const [about, texts] = await Promise.all([load("about"), load("texts")]);
  const place = (text) => (text === wanted ? 0 : text.split(/\W+/).includes(wanted) ? 1 : text.startsWith(wanted) ? 2 : 3);
  const found = texts
    .map((text, at) => [text, at, place(text.toLowerCase())])
    .filter(([text]) => wanted && text.toLowerCase().includes(wanted))
    .sort((one, other) => one[2] - other[2] || one[0].length - other[0].length);
  if (!found.length) return [`“${query}”`, make("p", {}, "No text of the dictionary that names a pair has this in it.")];
  const [best, at] = found[0];
  const listed = (await load(`texts/${Math.floor(at / about.texts)}`))[at];
  const others = found.slice(1, 40).map(([text]) => [textLink(text), " "]).flat();
  return [
    `“${best}”`,
    others.length ? make("p", {}, "Other texts: ", ...others) : null,
    make("div", { class: "sides" }, Object.entries(WAYS).filter(([way]) => listed[way]).map(([way, [title, told]]) =>
      make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, told), ...fitting(title, listed[way])))),
  ];
}

function fitting(title, list) {
  const columns = [{ title: "pair (head/neuron)" }, { title: "weight", number: true }, { title: "rank", number: true }];
  const rows = list.map(([head, neuron, weight, rank]) => [pairLink(head, neuron), number(weight), String(rank)]);
  const more = rows.slice(FIRST);
  return [table(columns, rows.slice(0, FIRST), title),
    more.length ? make("details", {}, make("summary", {}, `${more.length} more`), table(columns, more, `${title}, more`)) : null].filter(Boolean);
}

// --------------------------------------------------------------------------------------------------------- routes

const ROUTES = { "": home, pairs: home, head, neuron, pair, search };
let turn = 0;

async function show() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const mine = (turn += 1);
  let title, content;
  try {
    if (!Object.hasOwn(ROUTES, name)) throw new Error(`no page ${name}`);
    [title, ...content] = await ROUTES[name](...rest);
  } catch (error) {
    [title, content] = ["Not found", [make("p", {}, `${error.message}. `, link("#/", "All pairs"))]];
  }
  if (mine !== turn) return;
  document.title = `${title} · nadpipe explorer`;
  main.replaceChildren(make("h1", {}, title), ...content.filter(Boolean));
  status.textContent = title;
  window.scrollTo(0, 0);
  if (document.activeElement === document.body) main.focus({ preventScroll: true });
  main.dataset.shown = location.hash || "#/";
}

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = document.getElementById("query").value.trim();
  const numbers = query.match(/^(\d+)\s*[/ ,]\s*(\d+)$/);
  const head = query.match(/^head\s+(\d+)$/i);
  if (head) location.hash = `#/head/${head[1]}`;
  else if (numbers) location.hash = `#/pair/${numbers[1]}/${numbers[2]}`;
  else if (/^\d+$/.test(query)) location.hash = `#/neuron/${query}`;
  else if (query) location.hash = `#/search/${encodeURIComponent(query)}`;
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("query").focus();
  } else if (rel && !event.target.closest(".scroll")) document.querySelector(`nav.pages a[rel="${rel}"]`)?.click();
});

const theme = document.getElementById("theme");
function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.setAttribute("aria-pressed", String(dark));
}
theme.addEventListener("click", () => {
  const dark = theme.getAttribute("aria-pressed") !== "true";
  localStorage.setItem("theme", dark ? "dark" : "light");
  paint(dark);
});
paint((localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark");

window.addEventListener("hashchange", show);
show();
