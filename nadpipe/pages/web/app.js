"use strict";
// The explorer. The URL hash selects a page (#/pair/12/345). Each page loads a few small files from data/. These are scripts and
// images, which a browser also loads for pages that are opened from disk; it would refuse JSON.

const main = document.getElementById("main");
const status = document.getElementById("status");
const NAMING_RULES = {
  active: ["Texts by correlation", "correlation over images between the text's similarity and the coefficient along the direction"],
  nearest: ["Texts by direction", "cosine of text and direction"],
  sparse: ["Sparse code", "weights of the texts whose sum approximates the direction; negative weights point away from the text"],
};

const FIRST = 20; // pairs of a text that are listed before "more"

// ------------------------------------------------------------------------------------------------------------ data

const cache = new Map();
const waiting = new Map();

function load(name) {
  if (!cache.has(name)) cache.set(name, new Promise((resolve, reject) => {
    waiting.set(name, resolve);
    const script = make("script", { src: `data/${name}.js`, onerror: () => reject(new Error(`data/${name}.js: not readable`)) });
    script.addEventListener("load", () => script.remove());
    document.head.append(script);
  }));
  return cache.get(name);
}

// Every file of data calls this function.
function receive(name, content) {
  waiting.get(name)(content);
  waiting.delete(name);
}

async function loadFiring(neuron) {
  const maps = make("img", { src: `data/firing/${neuron}.png` });
  await maps.decode().catch(() => { throw new Error(`data/firing/${neuron}.png: not readable`); });
  return maps;
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

function makeSVG(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const link = (href, text, more = {}) => make("a", { href, ...more }, text);
let names = []; // of the heads
const headName = (head) => names[head] ?? String(head);
const pairLink = (head, neuron) => link(`#/pair/${head}/${neuron}`, `${headName(head)}/${neuron}`);
const textLink = (text) => link(`#/search/${encodeURIComponent(text)}`, text);
const number = (value) => (value === null ? "–" : String(+value.toPrecision(3)));

function table(columns, rows, caption) {
  const cell = (tag, content, index) =>
    make(tag, { class: columns[index].number ? "number" : null, scope: tag === "th" ? "col" : null }, content);
  const head = make("tr", {}, columns.map((column, index) => cell("th", column.title, index)));
  const body = rows.map((row) => {
    const line = make("tr", { "aria-current": row.current ? "true" : null });
    line.append(...(row.cells ?? row).map((content, index) => cell("td", content, index)));
    return line;
  });
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("caption", { class: "unseen" }, caption), make("thead", {}, head), make("tbody", {}, body)));
}

const PAIR_COLUMNS = [
  { title: "pair (head/neuron)" }, { title: "rank", number: true }, { title: "size", number: true },
  { title: "text by correlation" }, { title: "text by direction" },
];

function pairRows(rows, texts) {
  const named = (index) => (index < 0 ? "–" : textLink(texts[index]));
  return rows.map(([head, neuron, rank, size, active, nearest]) =>
    [pairLink(head, neuron), String(rank), number(size), named(active), named(nearest)]);
}

function pages(links) {
  return make("nav", { class: "pages", "aria-label": "Pages" }, links.filter(Boolean));
}

// ---------------------------------------------------------------------------------------------------------- pages

async function home(requested = "0") {
  const page = Math.max(0, Number.parseInt(requested, 10) || 0);
  const [about, texts, rows] = await Promise.all([load("about"), load("texts"), load(`ranked/${page}`)]);
  const total = about.heads * about.neurons;
  const last = Math.ceil(total / about.page) - 1;
  return [
    "All pairs by size",
    make("p", {}, `${about.architecture} has ${total.toLocaleString("en")} pairs of ${about.heads} heads and ${about.neurons} neurons, `
      + `measured on ${about.images} images. A pair's size is the root mean square norm of its centred contributions to the embedding.`),
    make("p", {}, "Heads: ", ...Array.from({ length: about.heads }, (_, head) => [link(`#/head/${head}`, headName(head)), " "]).flat()),
    pages([
      page > 0 && link(`#/pairs/${page - 1}`, "← larger", { rel: "prev" }),
      make("span", {}, `page ${page + 1} of ${last + 1}`),
      page < last && link(`#/pairs/${page + 1}`, "smaller →", { rel: "next" }),
    ]),
    table(PAIR_COLUMNS, pairRows(rows, texts), "Pairs by size"),
  ];
}

async function head(which, requested = "0") {
  const page = Number(requested);
  const [about, texts, content] = await Promise.all([load("about"), load("texts"), load(`heads/${which}`)]);
  const last = Math.ceil(content.pairs.length / about.page) - 1;
  return [
    `Head ${headName(which)}`,
    make("p", {}, `Rank ${content.about.rank} of ${about.heads} heads, size ${number(content.about.size)}; `
      + `its first directions explain ${content.about.explained.map((share) => `${number(100 * share)}%`).join(", ")}.`),
    pages([
      Number(which) > 0 && link(`#/head/${which - 1}`, "← previous head", { rel: "prev" }),
      page > 0 && link(`#/head/${which}/${page - 1}`, "larger pairs"),
      make("span", {}, `page ${page + 1} of ${last + 1}`),
      page < last && link(`#/head/${which}/${page + 1}`, "smaller pairs"),
      Number(which) < about.heads - 1 && link(`#/head/${+which + 1}`, "next head →", { rel: "next" }),
    ]),
    table(PAIR_COLUMNS, pairRows(content.pairs.slice(page * about.page, (page + 1) * about.page), texts), `Pairs of head ${headName(which)}`),
  ];
}

async function neuron(which) {
  const [about, texts, content] = await Promise.all([load("about"), load("texts"), load(`neurons/${which}`)]);
  return [
    `Neuron ${which}`,
    make("p", {}, `Rank ${content.about.rank} of ${about.neurons} neurons, size ${number(content.about.size)}; `
      + `its first directions explain ${content.about.explained.map((share) => `${number(100 * share)}%`).join(", ")}.`),
    neighbours("neuron", +which, about.neurons, (index) => `#/neuron/${index}`),
    make("h2", {}, "Pairs, one per head"),
    table(PAIR_COLUMNS, pairRows(siblings(content, which), texts), `Pairs of neuron ${which}`),
  ];
}

function siblings(content, which) {
  const first = (pair, rule) => pair.texts[rule]?.[0]?.[0] ?? -1;
  return content.pairs
    .map((pair) => [pair.head, +which, pair.rank, pair.size, first(pair, "active"), first(pair, "nearest")])
    .sort((one, other) => one[2] - other[2]);
}

function neighbours(name, index, count, address) {
  return pages([
    index > 0 && link(address(index - 1), `← previous ${name}`, { rel: "prev" }),
    index < count - 1 && link(address(index + 1), `next ${name} →`, { rel: "next" }),
  ]);
}

async function pair(whichHead, whichNeuron) {
  const [about, texts, content, images, maps] = await Promise.all([
    load("about"), load("texts"), load(`neurons/${whichNeuron}`), load("images"), loadFiring(whichNeuron),
  ]);
  const selected = content.pairs[+whichHead];
  if (!selected) throw new Error(`no head ${whichHead}`);
  const shown = selected.images.length;
  const slots = selected.images.map((_, slot) => slot);
  const gallery = (title, explanation, gallerySlots) => make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, explanation),
    make("div", { class: "shots" }, gallerySlots.map((slot) => shot(selected, slot, images[selected.images[slot]], maps, about.grid))));
  const toggle = make("input", { type: "checkbox", id: "maps", checked: "", onchange: (event) => main.classList.toggle("plain", !event.target.checked) });
  main.classList.remove("plain");
  return [
    `Pair ${headName(whichHead)}/${whichNeuron}`,
    make("p", {}, "Head ", link(`#/head/${whichHead}`, headName(whichHead)), ", neuron ", link(`#/neuron/${whichNeuron}`, whichNeuron), "."),
    neighbours("neuron", +whichNeuron, about.neurons, (index) => `#/pair/${whichHead}/${index}`),
    make("div", { class: "sides" },
      make("section", {}, make("h2", {}, "Properties"), make("dl", {},
        ...term("rank", `${selected.rank} of ${(about.heads * about.neurons).toLocaleString("en")}`),
        ...term("size", number(selected.size)),
        ...term("coefficient", `${number(selected.mean)} ± ${number(selected.std)}`),
        ...term("write vector", `norm ${number(selected.write)}`),
        ...term("direction", selected.sign > 0 ? "along its write vector" : "against its write vector"))),
      make("section", {}, make("h2", {}, "Distribution of the coefficient along the direction"), histogram(selected, about.images)),
    ),
    make("div", { class: "sides" }, Object.entries(NAMING_RULES).map(([rule, [title, explanation]]) =>
      namedBy(title, explanation, selected.texts[rule] ?? [], texts))),
    make("p", {}, toggle, " ", make("label", { for: "maps" }, "show where the pair fires")),
    make("div", { class: "legend" }, colourBar(selected.scale),
      make("p", { class: "quiet" }, "Part of the coefficient that comes from each token: attention × activation, orange along the direction, "
        + "blue against it. All images of a pair have the same scale; other pairs have others.")),
    gallery("Top images", "largest coefficients along the direction", slots.slice(0, shown / 2)),
    gallery("Bottom images", "smallest coefficients along the direction", slots.slice(shown / 2)),
    make("h2", {}, `Pairs of the same neuron`),
    table(PAIR_COLUMNS, pairRows(siblings(content, whichNeuron), texts).map((cells, index) =>
      ({ cells, current: siblings(content, whichNeuron)[index][0] === +whichHead })), "Pairs of the same neuron"),
  ];
}

const term = (name, value) => [make("dt", {}, name), make("dd", {}, value)];

function namedBy(title, explanation, list, texts) {
  const largest = Math.max(...list.map(([, weight]) => Math.abs(weight)), 1e-9);
  const rows = list.map(([text, weight]) => [textLink(texts[text]),
    [make("span", { class: "bar", style: `width:${(3.5 * Math.abs(weight)) / largest}rem`, "aria-hidden": "true" }), number(weight)]]);
  return make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, explanation),
    rows.length ? table([{ title: "text" }, { title: "weight" }], rows, title) : make("p", {}, "No texts. The pair does not vary, or this rule was not applied to it."));
}

function histogram(pair, images) {
  const [low, high] = pair.reach;
  const highest = Math.max(...pair.counts);
  const step = 100 / pair.counts.length;
  const description = `Histogram over ${images} images, from ${number(low)} to ${number(high)}`;
  const bars = pair.counts.map((count, bin) => makeSVG("rect",
    { x: bin * step, width: step * 0.9, y: 30 - (28 * count) / highest, height: (28 * count) / highest }, makeSVG("title", {}, `${count} images`)));
  return make("figure", {},
    makeSVG("svg", { class: "spread", viewBox: "0 0 100 32", preserveAspectRatio: "none", role: "img", "aria-label": description }, ...bars),
    make("figcaption", {}, `${description}.`));
}

function colourBar(reach) {
  const ends = [-reach, 0, reach].map((value) => make("span", {}, number(value)));
  return make("div", { class: "scale", role: "img", "aria-label": `Colours from ${number(-reach)} (blue) to ${number(reach)} (orange)` },
    make("div", { class: "colours" }), make("div", { class: "ends" }, ends));
}

function shot(pair, slot, metadata, maps, grid) {
  const id = pair.images[slot];
  const canvas = make("canvas", { width: grid, height: grid, "aria-hidden": "true" });
  canvas.getContext("2d").drawImage(maps, slot * grid, pair.head * grid, grid, grid, 0, 0, grid, grid);
  const groups = [metadata.label, metadata.group].filter(Boolean).join(", ");
  return make("figure", {},
    make("div", { class: "shot" }, make("img", { src: `data/images/${id}.jpg`, alt: `image ${id}${groups ? `: ${groups}` : ""}`, loading: "lazy" }), canvas),
    make("figcaption", {}, `coefficient ${number(pair.values[slot])} · image ${id}${groups ? `, ${groups}` : ""}`));
}

async function search(encoded) {
  const query = decodeURIComponent(encoded).trim();
  const needle = query.toLowerCase();
  const [about, texts] = await Promise.all([load("about"), load("texts")]);
  const order = (text) => (text === needle ? 0 : text.split(/\W+/).includes(needle) ? 1 : text.startsWith(needle) ? 2 : 3);
  const matches = texts
    .map((text, index) => [text, index, order(text.toLowerCase())])
    .filter(([text]) => needle && text.toLowerCase().includes(needle))
    .sort((one, other) => one[2] - other[2] || one[0].length - other[0].length);
  if (!matches.length) return [`“${query}”`, make("p", {}, "No text that names a pair contains this.")];
  const [best, position] = matches[0];
  const pairs = (await load(`texts/${Math.floor(position / about.texts)}`))[position];
  const others = matches.slice(1, 40).map(([text]) => [textLink(text), " "]).flat();
  return [
    `“${best}”`,
    others.length ? make("p", {}, "Other texts: ", ...others) : null,
    make("div", { class: "sides" }, Object.entries(NAMING_RULES).filter(([rule]) => pairs[rule]).map(([rule, [title, explanation]]) =>
      make("section", {}, make("h2", {}, title), make("p", { class: "quiet" }, explanation), ...fitting(title, pairs[rule])))),
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
let requests = 0;

async function show() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const request = (requests += 1);
  let title, content;
  try {
    if (!Object.hasOwn(ROUTES, name)) throw new Error(`no page ${name}`);
    names = (await load("about")).names;
    [title, ...content] = await ROUTES[name](...rest);
  } catch (error) {
    [title, content] = ["Not found", [make("p", {}, `${error.message}. `, link("#/", "All pairs"))]];
  }
  if (request !== requests) return; // the reader went to another page meanwhile
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
  const numbers = query.match(/^([\d.]+)\s*[/ ,]\s*(\d+)$/);
  const head = query.match(/^head\s+([\d.]+)$/i);
  const numbered = (name) => (names.includes(name) ? names.indexOf(name) : name);
  if (head) location.hash = `#/head/${numbered(head[1])}`;
  else if (numbers) location.hash = `#/pair/${numbered(numbers[1])}/${numbers[2]}`;
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
