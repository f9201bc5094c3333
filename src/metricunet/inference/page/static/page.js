// The page of one case, to look at only. What it shows is in the page itself; it asks for nothing.

import { NVImage } from "./niivue.js";
import { Mask } from "./paint.js";
import { PLANES, STYLES, Viewer, WINDOWS, isTyping, releaseKeys } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const INT16 = 4; // NIfTI's code of the datatype

const state = { viewer: null, facts: null, mask: null, slices: [], style: 0, hidden: new Set() };

// --- What the page holds ------------------------------------------------------------------------------------------

async function inflated(id) {
  const text = atob($(id).textContent);
  const bytes = Uint8Array.from({ length: text.length }, (_, n) => text.charCodeAt(n));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Undo the steps from voxel to voxel; their low bytes come first, then their high ones.
function unpackedHu(planes) {
  const count = planes.length / 2;
  const hu = new Int16Array(count);
  for (let n = 0, last = 0; n < count; n++) {
    const unsigned = planes[n] | (planes[n + count] << 8);
    last += (unsigned >>> 1) ^ -(unsigned & 1);
    hu[n] = last; // wraps back
  }
  return hu;
}

// --- Slices and structures ----------------------------------------------------------------------------------------

// Slices by the error that is expected there; without any, those with a structure, from foot to head.
function rank() {
  const known = [...state.facts.slices].sort((a, b) => b.mm - a.mm || a.k - b.k);
  const numbers = [...document.querySelectorAll("#structures tr")].map((row) => Number(row.dataset.number));
  const plain = known.length ? [] : state.mask.slicesWith(numbers[0]);
  state.slices = known.length ? known : plain.map((k) => ({ k, mm: null }));
  $("slices-title").textContent = known.length ? "Slices by expected error" : "Slices";
  const items = state.slices.map((slice) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.dataset.k = slice.k;
    const words = [`Slice ${sliceNumber(slice.k)}`, ...(slice.mm === null ? [] : [`${slice.mm.toFixed(1)} mm`])];
    button.append(...words.map((textContent) => Object.assign(document.createElement("span"), { textContent })));
    if (slice.mm !== null && known[0].mm > 0) {
      const share = Math.round((70 * slice.mm) / known[0].mm);
      button.style.backgroundImage = `linear-gradient(90deg, #e69f0055 ${share}%, transparent ${share}%)`;
    }
    button.addEventListener("click", () => goToSlice(slice.k));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  $("slices").replaceChildren(...items);
}

// As the scan counts them, from 1.
function sliceNumber(k) {
  const { first_slice: first, slices_in_one: many } = state.facts;
  // The last one may stand for fewer slices than the others.
  return Math.min(state.facts.scan_slices, first + k * many + Math.floor((many - 1) / 2) + 1);
}

function goToSlice(k) {
  const [nx, ny] = state.facts.dims;
  state.viewer.goTo(state.mask.middle((number) => number > 0, k, k) ?? [nx >> 1, ny >> 1, k]);
}

function nextRanked(by) {
  if (!state.slices.length) return;
  const at = state.slices.findIndex((slice) => slice.k === state.viewer.position[2]);
  goToSlice(state.slices[Math.min(state.slices.length - 1, Math.max(0, at < 0 ? 0 : at + by))].k);
}

function arrangeStructures() {
  for (const row of document.querySelectorAll("#structures tr")) {
    const number = Number(row.dataset.number);
    const box = row.querySelector("input");
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(number);
      else state.hidden.add(number);
      state.viewer.setHidden(state.hidden);
    });
    row.querySelector("button").addEventListener("click", () => {
      const middle = state.mask.middleOf(number);
      if (middle) state.viewer.goTo(middle);
    });
  }
}

// --- What is seen -------------------------------------------------------------------------------------------------

function moved(position, hu) {
  if (!state.mask) return;
  const [i, j, k] = position;
  const row = document.querySelector(`#structures tr[data-number="${state.mask.at(i, j, k)}"]`);
  const slice = state.slices.find((s) => s.k === k && s.mm !== null);
  $("place").textContent = [
    `Slice ${sliceNumber(k)} of ${state.facts.scan_slices}`,
    `${Math.round(hu)} HU`,
    row?.querySelector("button").textContent ?? "no structure",
    ...(slice ? [`expected error ${slice.mm.toFixed(1)} mm`] : []),
  ].join(" · ");
  for (const button of $("slices").querySelectorAll("button")) {
    if (Number(button.dataset.k) === k) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function setPlane(name) {
  state.viewer.setPlane(name);
  for (const button of $("planes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.plane === name));
  }
}

function setStyle(number) {
  state.style = number;
  $("style").value = number;
  state.viewer.setStyle(STYLES[number]);
}

function setWindow(number) {
  $("window").value = number;
  state.viewer.setWindow(WINDOWS[number].range);
}

const KEYS = {
  ArrowUp: () => state.viewer.step(2, 1),
  ArrowDown: () => state.viewer.step(2, -1),
  n: () => nextRanked(1),
  p: () => nextRanked(-1),
  o: () => setStyle((state.style + 1) % STYLES.length),
  "+": () => state.viewer.zoom(1.25),
  "-": () => state.viewer.zoom(0.8),
  0: () => state.viewer.zoom(0),
  ...Object.fromEntries(WINDOWS.map((_, n) => [n + 1, () => setWindow(n)])),
};

function pressed(event) {
  if (isTyping(event) || event.altKey || event.ctrlKey || event.metaKey) return;
  // NiiVue has keys of its own, which are none of this page's.
  event.stopPropagation();
  if (!state.mask || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
}

function rolled(event) {
  if (!state.mask) return;
  event.preventDefault();
  event.stopPropagation();
  if (!event.deltaY) return; // a wheel that is tilted, or two fingers sideways
  const box = $("stage").getBoundingClientRect();
  const under = state.viewer.under(event.clientX - box.left, event.clientY - box.top);
  if (event.ctrlKey) state.viewer.zoom(event.deltaY < 0 ? 1.15 : 0.87);
  else if (under) state.viewer.step(under.axis, event.deltaY < 0 ? 1 : -1);
}

function arrange() {
  const choices = (names) => names.map((name, n) => new Option(name, n));
  $("window").append(...choices(WINDOWS.map((w) => w.name)));
  $("style").append(...choices(STYLES.map((s) => s.name)));
  for (const name of Object.keys(PLANES)) {
    const text = name === "all" ? "Three planes" : name[0].toUpperCase() + name.slice(1);
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.dataset.plane = name;
    button.setAttribute("aria-pressed", String(name === "all"));
    button.addEventListener("click", () => setPlane(name));
    $("planes").append(button);
  }
  $("window").addEventListener("change", () => setWindow(Number($("window").value)));
  $("style").addEventListener("change", () => setStyle(Number($("style").value)));
  releaseKeys();
  window.addEventListener("keydown", pressed, true);
  $("stage").addEventListener("wheel", rolled, { capture: true, passive: false });
  $("stage").addEventListener("contextmenu", (event) => event.preventDefault());
}

async function begin() {
  try {
    state.facts = JSON.parse($("facts").textContent);
    const { dims, spacing_mm: spacing } = state.facts;
    const [hu, numbers] = [unpackedHu(await inflated("scan")), await inflated("numbers")];
    const viewer = new Viewer(moved);
    await viewer.attach($("planes-canvas"), $("solid-canvas"));
    state.viewer = viewer;
    const affine = [spacing[0], 0, 0, 0, 0, spacing[1], 0, 0, 0, 0, spacing[2], 0, 0, 0, 0, 1];
    const scan = NVImage.createNiftiArray(dims, spacing, affine, INT16, new Uint8Array(hu.buffer));
    const mask = new Mask(dims, spacing, numbers);
    const rows = [...document.querySelectorAll("#structures tr")];
    const colours = Array.from({ length: Math.max(...rows.map((row) => Number(row.dataset.number))) }, () => [0, 0, 0]);
    for (const row of rows) {
      const colour = row.querySelector(".colour").style.backgroundColor.match(/\d+/g).map(Number);
      colours[Number(row.dataset.number) - 1] = colour;
    }
    await viewer.load(scan.buffer, mask, colours, () => true);
    state.mask = mask;
    arrange();
    arrangeStructures();
    setStyle(state.style);
    setWindow(0);
    rank();
    goToSlice(state.slices.length ? state.slices[0].k : dims[2] >> 1);
    $("covering").textContent = "";
  } catch (error) {
    $("covering").textContent = `This browser cannot draw the pictures (WebGL 2): ${error.message}`;
  }
}

begin();
// What a test drives and looks at.
window.page = state;
