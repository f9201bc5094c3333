// The page: lists cases, shows one, takes strokes, and sends decisions. All text of files is set as text, never as HTML.

import { Mask } from "./paint.js";
import { PLANES, STYLES, Viewer, WINDOWS, isTyping, releaseKeys } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const SOLID_PAUSE_MS = 700;
const PREDICTION = 0;
const MOST_SECONDS = 7 * 24 * 3600; // more the server does not take

const state = {
  viewer: null,
  list: [],
  name: "", // of the open case
  info: null, // what the server says of it
  field: null, // what part of the scan is shown
  mask: null,
  ranked: [], // slices of the field, the most doubtful first
  hidden: new Set(), // numbers of structures
  tool: "look",
  style: 0,
  opening: 0, // counts attempts, so that a slow one does not win over a later one
  latest: 0, // the last review that this page knows of
  pending: null, // a decision that waits for an answer about somebody else's
  offered: "", // the reviewer's name that the server offers
  isNode: false, // whether the server knows who asks, and writes that name whatever stands in the field
};

// --- Time on the screen -------------------------------------------------------------------------------------------

const clock = { ms: 0, since: null };

function startClock() {
  clock.ms = 0;
  clock.since = document.hidden ? null : performance.now();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && clock.since !== null) {
    clock.ms += performance.now() - clock.since;
    clock.since = null;
  } else if (!document.hidden) {
    clock.since = performance.now();
  }
});

function secondsOnScreen() {
  return (clock.ms + (clock.since === null ? 0 : performance.now() - clock.since)) / 1000;
}

// --- Talking to the server ----------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(message, status, content) {
    super(message);
    this.status = status;
    this.content = content;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The server does not answer. Is metricunet review still running?", 0, {});
  }
  if (!response.ok) {
    const text = await response.text();
    let content = { error: text };
    try {
      content = JSON.parse(text);
    } catch {
      // plain text is the message itself
    }
    throw new Refused(String(content.error), response.status, content);
  }
  return response;
}

const caseAddress = (name) => `/api/cases/${encodeURIComponent(name)}`;
const inField = (field) => `start=${field.start.join(",")}&shape=${field.shape.join(",")}`;

// --- The list of cases --------------------------------------------------------------------------------------------

async function loadList() {
  const content = await (await ask("/api/cases")).json();
  state.list = content.cases;
  $("folder").textContent = content.folder;
  $("ledger-link").hidden = !content.has_ledger;
  state.offered = content.reviewer;
  state.isNode = content.knows_reviewer;
  $("reviewer").readOnly = state.isNode;
  if (state.isNode) $("reviewer").value = content.reviewer;
  else if (!$("reviewer").value) $("reviewer").value = localStorage.getItem(reviewerKey()) || content.reviewer;
  const items = state.list.map((entry) => {
    const button = element("button", { type: "button" });
    button.dataset.name = entry.name;
    if (entry.name === state.name) button.setAttribute("aria-current", "true");
    button.append(element("span", { className: "name", textContent: entry.name }));
    const said = element("span", { className: "said" });
    said.append(element("span", { className: entry.verdict, textContent: entry.verdict || "no verdict" }));
    if (entry.doubt) {
      said.append(" · doubt ", element("span", { className: entry.doubt, textContent: entry.doubt }));
    }
    const more = entry.expected_error_mm === null ? [] : [`error ${entry.expected_error_mm.toFixed(1)} mm`];
    if (entry.decision) more.push(`✓ ${entry.decision}`);
    if (entry.earlier) more.push(`${entry.earlier} before it was predicted anew`);
    button.append(said, element("small", { textContent: more.join(" · ") }));
    button.addEventListener("click", () => changeCase(entry.name));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  for (const entry of content.unreadable) {
    items.push(element("li", { className: "unreadable", textContent: `${entry.name}: ${entry.reason}` }));
  }
  $("cases").replaceChildren(...items);
  const done = state.list.filter((entry) => entry.decision).length;
  $("progress").textContent = `${done} of ${state.list.length} decided`;
}

// A name that was typed here stands for the one that was offered then, and for no other that is offered later.
const reviewerKey = () => `metricunet-reviewer ${state.offered}`;

function changeCase(name, review = null) {
  if (stroke) return;
  if (state.mask?.isChanged && !confirm("Your corrections of this case are not saved. Leave them?")) return;
  return openCase(name, review);
}

function neighbour(by) {
  const at = state.list.findIndex((entry) => entry.name === state.name);
  const next = state.list[at + by];
  if (next) changeCase(next.name);
}

// --- One case -----------------------------------------------------------------------------------------------------

async function openCase(name, review = null) {
  const attempt = ++state.opening;
  cover(`Reading ${name} …`);
  state.name = name;
  state.info = state.mask = null;
  state.hidden.clear();
  document.title = `${name} · metricunet review`;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  for (const button of $("cases").querySelectorAll("button")) {
    button.toggleAttribute("aria-current", false);
    if (button.dataset.name === name) button.setAttribute("aria-current", "true");
  }
  say("");
  $("conflict").hidden = true;
  $("reason").value = "";
  $("case-name").textContent = name;
  $("verdict").replaceChildren();
  for (const id of ["reasons", "structures", "slices"]) $(id).replaceChildren();
  $("decided").textContent = "";
  enable();
  try {
    const wanted = review === null ? "" : `?review=${review}`;
    const info = await (await ask(`${caseAddress(name)}${wanted}`)).json();
    if (attempt !== state.opening) return;
    const [scan, mask] = await readField(info, info.near);
    if (attempt !== state.opening) return;
    if (!(await show(attempt, info, info.near, scan, mask))) return;
    state.latest = info.reviews.length ? info.reviews.at(-1).number : 0;
    describe();
    goToSlice(state.ranked[0]);
    startClock();
    cover("");
  } catch (error) {
    if (attempt === state.opening) cover(error.message);
  }
  enable();
}

async function readField(info, field) {
  const address = caseAddress(info.name);
  const shown = `${inField(field)}&prediction=${info.prediction}`;
  const [scan, mask] = await Promise.all([
    ask(`${address}/scan?${shown}`).then((r) => r.arrayBuffer()),
    ask(`${address}/mask?review=${info.shown}&${shown}`).then((r) => r.arrayBuffer()),
  ]);
  return [scan, new Uint8Array(mask)];
}

// The server counts slice, row, column; the browser right, front, head.
const turned = (three) => [three[2], three[1], three[0]];

// Show a case in a field, unless another one is wanted by then. Returns whether it is shown.
async function show(attempt, info, field, scan, voxels) {
  const mask = voxels instanceof Mask ? voxels : new Mask(turned(field.shape), turned(info.spacing_mm), voxels);
  const colours = info.structures.map((s) => s.colour);
  if (!(await state.viewer.load(scan, mask, colours, () => attempt === state.opening, state.hidden))) return false;
  Object.assign(state, { info, field, mask });
  state.viewer.setStyle(STYLES[state.style]);
  state.viewer.setWindow(WINDOWS[$("window").value].range);
  const whole = field.shape.every((n, a) => n === state.info.whole.shape[a]);
  $("whole").setAttribute("aria-pressed", String(whole));
  rank();
  return true;
}

// Slices of the field by the error that is expected there; without any, those with a structure, from foot to head.
function rank() {
  const first = state.field.start[0];
  const known = state.info.slices
    .map((s) => ({ k: s.slice - first, z: s.z_mm, mm: s.expected_error_mm }))
    .filter((s) => s.k >= 0 && s.k < state.mask.dims[2]);
  known.sort((a, b) => b.mm - a.mm || a.k - b.k);
  const target = state.info.structures[0]?.number ?? 1;
  $("slices-title").textContent = known.length ? "Slices by expected error" : "Slices";
  const plain = known.length ? [] : state.mask.slicesWith(target).map((k) => ({ k, z: null, mm: null }));
  state.ranked = known.length ? known : plain;
  const most = known.length ? known[0].mm : 0;
  const items = state.ranked.map((slice) => {
    const button = element("button", { type: "button" });
    button.dataset.k = slice.k;
    button.append(element("span", { textContent: `Slice ${slice.k + first + 1}` }));
    if (slice.mm !== null) {
      button.append(element("span", { textContent: `${slice.mm.toFixed(1)} mm` }));
      const share = most > 0 ? Math.round((70 * slice.mm) / most) : 0;
      button.style.backgroundImage = `linear-gradient(90deg, #e69f0055 ${share}%, transparent ${share}%)`;
    }
    button.addEventListener("click", () => goToSlice(slice));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  $("slices").replaceChildren(...items);
}

function goToSlice(slice) {
  const [nx, ny, nz] = state.mask.dims;
  if (!slice) return state.viewer.goTo([nx / 2, ny / 2, nz / 2].map(Math.floor));
  const middle = state.mask.middle((number) => number > 0, slice.k, slice.k) ?? [nx >> 1, ny >> 1, slice.k];
  state.viewer.goTo(middle);
}

function nextRanked(by) {
  if (!state.ranked.length) return;
  const k = state.viewer.position[2];
  const at = state.ranked.findIndex((slice) => slice.k === k);
  goToSlice(state.ranked[Math.min(state.ranked.length - 1, Math.max(0, at < 0 ? 0 : at + by))]);
}

function describe() {
  const { info } = state;
  const words = element("span", { className: info.verdict, textContent: info.verdict || "no verdict" });
  $("verdict").replaceChildren("Verdict ", words);
  if (info.doubt) {
    $("verdict").append(", doubt ", element("span", { className: info.doubt, textContent: info.doubt }));
  }
  $("reasons").replaceChildren(...info.reasons.map((reason) => element("li", { textContent: reason })));
  const last = info.reviews.at(-1);
  $("decided").textContent = last ? inWords(last) : "Not decided yet.";
  options($("structure"), info.structures.map((s) => [s.number, inText(s.name)]));
  $("structures").replaceChildren(...info.structures.map(structureRow));
  markStructure();
  const versions = [[PREDICTION, "prediction"]];
  for (const review of info.reviews.filter((r) => r.has_mask)) {
    versions.push([review.number, `review ${review.number} (${review.decision})`]);
  }
  options($("version"), versions, info.shown);
}

// A structure with its colour: whether it is shown, and by its name a way to its middle and to the brush.
function structureRow({ number, name, colour }) {
  const row = element("tr", {});
  row.dataset.number = number;
  const box = element("input", { type: "checkbox", checked: true, ariaLabel: `Show ${inText(name)}` });
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(number);
    else state.hidden.add(number);
    state.viewer.setHidden(state.hidden);
  });
  const swatch = element("span", { className: "colour" });
  swatch.style.background = `rgb(${colour.join(",")})`;
  const button = element("button", { type: "button", title: "Go to its middle, and paint it", textContent: inText(name) });
  button.addEventListener("click", () => {
    $("structure").value = number;
    markStructure();
    const middle = state.mask?.middleOf(number);
    if (middle && !isCovered()) state.viewer.goTo(middle);
  });
  for (const part of [box, swatch, button]) row.insertCell().append(part);
  return row;
}

function markStructure() {
  for (const row of $("structures").rows) {
    row.querySelector("button").setAttribute("aria-pressed", String(Number(row.dataset.number) === structure()));
  }
}

const inText = (name) => name.replaceAll("_", " ");

function inWords(review) {
  const when = new Date(review.decided).toLocaleString();
  const why = review.reason ? `: ${review.reason}` : "";
  return `Review ${review.number}: ${review.decision} by ${review.reviewer}, ${when}${why}`;
}

async function toggleWhole() {
  if (stroke) return;
  const { info } = state;
  const whole = $("whole").getAttribute("aria-pressed") !== "true";
  if (!whole && state.mask.isChanged) return say("Save your corrections before you leave the whole scan.", true);
  const attempt = ++state.opening;
  cover("Reading the scan …");
  try {
    const field = whole ? info.whole : info.near;
    const [scan, beyond] = await readField(info, field);
    if (attempt !== state.opening) return;
    const before = state.field;
    const position = state.viewer.position;
    const offset = turned(before.start.map((first, a) => first - field.start[a]));
    const mask = whole ? state.mask.within(turned(field.shape), offset, beyond) : beyond;
    if (!(await show(attempt, info, field, scan, mask))) return;
    state.viewer.goTo(position.map((v, a) => v + offset[a]));
  } catch (error) {
    if (attempt === state.opening) say(error.message, true);
  }
  if (attempt === state.opening) cover("");
  enable();
}

// --- Correcting ---------------------------------------------------------------------------------------------------

const layer = $("brush-layer");
let stroke = null; // { pointer, axis, tile, last } while the button is down
let isPanning = false; // while the right button is down

function setTool(tool) {
  state.tool = tool;
  for (const button of $("tools").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
  layer.classList.toggle("active", tool !== "look");
  drawCursor(null);
}

const radius = () => Number($("radius").value);
const structure = () => Number($("structure").value) || 1;

function setRadius(mm) {
  $("radius").value = mm;
  $("radius-mm").textContent = `${radius()} mm`;
}

function paint(from, to, axis) {
  state.mask.stroke(axis, from, to, radius(), state.tool === "brush" ? structure() : 0, structure());
  const [low, high] = axis === 2
    ? [Math.round(from[2]), Math.round(from[2])]
    : [Math.min(from[2], to[2]) - radius() / state.mask.spacing[2], Math.max(from[2], to[2]) + radius() / state.mask.spacing[2]];
  const nz = state.mask.dims[2];
  state.viewer.refresh(Math.max(0, Math.floor(low)), Math.min(nz - 1, Math.ceil(high)));
}

layer.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !state.mask || stroke) return; // a second finger begins none
  const under = state.viewer.under(event.offsetX, event.offsetY);
  if (!under) return;
  event.preventDefault();
  layer.setPointerCapture(event.pointerId);
  state.mask.begin();
  stroke = { pointer: event.pointerId, axis: under.axis, tile: under.tile, last: under.voxel };
  paint(under.voxel, under.voxel, under.axis);
});

layer.addEventListener("pointermove", (event) => {
  drawCursor(event);
  if (stroke?.pointer !== event.pointerId) return;
  const under = state.viewer.under(event.offsetX, event.offsetY);
  if (!under || under.tile !== stroke.tile) return;
  paint(stroke.last, under.voxel, stroke.axis);
  stroke.last = under.voxel;
});

function endStroke(event) {
  if (stroke?.pointer !== event.pointerId) return;
  stroke = null;
  state.mask.end();
  changed();
}

layer.addEventListener("pointerup", endStroke);
layer.addEventListener("pointercancel", endStroke);
layer.addEventListener("pointerleave", () => drawCursor(null));

// The layer lies over NiiVue's canvas, whose right button moves the picture with any tool.
for (const kind of ["mousedown", "mousemove", "mouseup", "mouseleave"]) {
  layer.addEventListener(kind, (event) => {
    if (kind === "mousedown") isPanning = event.button === 2 && !stroke;
    if (!isPanning) return;
    $("planes-canvas").dispatchEvent(new MouseEvent(kind, event));
    if (kind === "mouseup" || kind === "mouseleave") isPanning = false;
  });
}

function drawCursor(event) {
  const { width, height } = layer.getBoundingClientRect();
  const scale = window.devicePixelRatio;
  layer.width = width * scale;
  layer.height = height * scale;
  if (!event || state.tool === "look" || !state.mask) return;
  const pixels = radius() * state.viewer.pixelsPerMm(event.offsetX, event.offsetY);
  if (!pixels) return;
  const context = layer.getContext("2d");
  context.scale(scale, scale);
  context.strokeStyle = state.tool === "brush" ? "#fff" : "#ff9a85";
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(event.offsetX, event.offsetY, pixels, 0, 2 * Math.PI);
  context.stroke();
}

function changed() {
  state.viewer.refreshSolid(SOLID_PAUSE_MS);
  moved(state.viewer.position, state.viewer.hu); // what lies under the lines may be another structure now
  say(state.mask.isChanged ? "Corrections are not saved yet." : "");
  enable();
}

// Do something to the mask that is undone as one step.
function edit(work) {
  if (!state.mask || stroke) return;
  state.mask.begin();
  const words = work();
  const count = state.mask.end();
  state.viewer.refreshAll();
  changed();
  if (words) say(words(count));
}

function clearSlice() {
  edit(() => state.mask.clearSlice(state.viewer.position[2], structure()));
}

function fillBetween() {
  edit(() => {
    const filled = state.mask.fillBetween(structure());
    return () => (filled.length
      ? `${filled.length} slice${filled.length > 1 ? "s" : ""} filled.`
      : "No slice between two with this structure lacks it.");
  });
}

function undo(back) {
  if (!state.mask || isCovered() || stroke || !(back ? state.mask.undo() : state.mask.redo())) return;
  state.viewer.refreshAll();
  changed();
}

// --- Deciding -----------------------------------------------------------------------------------------------------

async function decide(rejected, beside = false) {
  if (!state.mask || isCovered() || stroke || state.info.isSaving) return;
  if (rejected && !$("reason").value.trim()) {
    $("reason").focus();
    return say("Write what is wrong with the case.", true);
  }
  if (rejected && state.mask.isChanged && !beside && !confirm("A rejected case has no mask: leave your corrections?")) return;
  const { info, mask, field, name } = state;
  const fields = {
    rejected,
    reason: $("reason").value.trim(),
    reviewer: $("reviewer").value.trim(),
    seconds: Math.min(MOST_SECONDS, secondsOnScreen()),
    based_on: info.shown,
    latest: state.latest,
    prediction: info.prediction,
    beside,
    start: field.start,
    shape: field.shape,
  };
  const step = mask.top;
  const json = new TextEncoder().encode(JSON.stringify(fields));
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, json.length, true);
  const voxels = rejected ? new Uint8Array(0) : mask.data.slice();
  $("conflict").hidden = true;
  info.isSaving = true;
  enable();
  say("Saving …");
  try {
    const body = new Blob([length, json, voxels]);
    const headers = { "Content-Type": "application/octet-stream" };
    const response = await ask(`${caseAddress(name)}/reviews`, { method: "POST", headers, body });
    const review = await response.json();
    localStorage.setItem(reviewerKey(), fields.reviewer);
    if (state.name === name && state.info === info) {
      info.reviews.push(review);
      state.latest = review.number;
      if (!rejected) {
        info.shown = review.number;
        // Strokes that were made while it was being saved are still to be saved.
        mask.saved = step;
        const offered = $("version");
        offered.add(new Option(`review ${review.number} (${review.decision})`, review.number));
        offered.value = String(review.number);
      } else if (mask.isChanged) {
        // What is saved may lie on either side of what is shown.
        while (mask.isChanged && mask.redo());
        while (mask.isChanged && mask.undo());
        state.viewer.refreshAll();
        state.viewer.refreshSolid();
      }
      $("decided").textContent = inWords(review);
      // The next decision has a reason of its own.
      if ($("reason").value.trim() === fields.reason) $("reason").value = "";
      say(`Saved as ${review.file}.${whatLacks(review)}`);
      startClock();
    } else if (whatLacks(review)) {
      say(`Saved as ${review.file}.${whatLacks(review)}`);
    }
    loadList().catch(() => {}); // it is saved, whatever becomes of the list and however long that takes
  } catch (error) {
    // Of a case that was left meanwhile it is said, and nothing is offered: the buttons are for the one in sight.
    if (error.status === 409 && state.info === info) {
      const anew = Boolean(error.content.predicted_anew);
      state.pending = { rejected, anew, theirs: error.content.latest };
      $("conflict-text").textContent = anew ? `${error.message}.${strokesOfEarlier(mask)}` : error.message;
      $("conflict").hidden = false;
      $("save-beside").hidden = anew;
      $("open-theirs").hidden = !anew && !error.content.has_mask;
      $("open-theirs").textContent = anew ? "Open it again" : "Open that review";
      say("");
    } else {
      say(`${error.message}${stillHere(error, info, mask)}`, true);
    }
  }
  info.isSaving = false;
  enable();
}

// How strokes are saved after all where the server is gone or was started anew: a cookie counts in all tabs.
function stillHere(error, info, mask) {
  if (![0, 401].includes(error.status) || state.info !== info || !mask.isChanged) return "";
  const anew = state.isNode
    ? "open the node's address"
    : `start metricunet review again with --port ${location.port}, open the address that it prints`;
  return ` Your corrections are still on this page: ${anew} in another tab of this browser, then save here.`;
}

// What becomes of strokes on a prediction that is there no more: they were made on another mask, so they cannot be saved.
function strokesOfEarlier(mask) {
  return mask.isChanged
    ? " Your corrections are of the earlier prediction and cannot be saved with the new one: they stay on the screen until you open it again."
    : "";
}

// Open a case that was predicted anew. The reason that was written stays; strokes are asked for before they are left.
async function openAgain() {
  const { name } = state;
  const reason = $("reason").value;
  await changeCase(name);
  if (state.name !== name) return;
  if (reason) $("reason").value = reason;
  await loadList().catch(() => {}); // its verdict may be another one
}

// --- What the page shows ------------------------------------------------------------------------------------------

function element(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

// The decision itself is saved, whatever became of the structure set and of the ledger.
function whatLacks(review) {
  const problem = review.problem ? ` There is no structure set: ${review.problem}` : "";
  return `${problem}${review.not_recorded ? ` It is not in the ledger: ${review.not_recorded}` : ""}`;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

// While something is read, or nothing can be shown, a text lies over the picture and nothing can be changed.
function cover(text) {
  $("covering").textContent = text;
  enable();
}

const isCovered = () => $("covering").textContent !== "";

function enable() {
  const there = Boolean(state.mask) && !isCovered();
  for (const id of ["clear", "fill", "version"]) $(id).disabled = !there;
  for (const id of ["accept", "reject", "whole"]) $(id).disabled = !there || Boolean(state.info.isSaving);
  $("undo").disabled = !there || !state.mask.done.length;
  $("redo").disabled = !there || !state.mask.undone.length;
  $("accept").textContent = state.mask?.isChanged ? "Save correction" : "Accept";
}

function moved(position, hu) {
  if (!state.field || !state.mask) return;
  const [i, j, k] = position;
  const first = turned(state.field.start);
  const number = state.mask.at(i, j, k);
  const under = state.info.structures.find((s) => s.number === number);
  const slice = state.ranked.find((s) => s.k === k && s.mm !== null);
  $("place").textContent = [
    `Slice ${k + first[2] + 1} of ${state.info.whole.shape[0]}`,
    `${Math.round(hu)} HU`,
    under ? inText(under.name) : "no structure",
    ...(slice ? [`expected error ${slice.mm.toFixed(1)} mm`] : []),
  ].join(" · ");
  for (const button of $("slices").querySelectorAll("button")) {
    if (Number(button.dataset.k) === k) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function setPlane(name) {
  state.viewer?.setPlane(name);
  for (const button of $("planes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.plane === name));
  }
}

function setStyle(number) {
  state.style = number;
  $("style").value = number;
  state.viewer?.setStyle(STYLES[number]);
}

function setWindow(number) {
  $("window").value = number;
  state.viewer?.setWindow(WINDOWS[number].range);
}

const KEYS = [
  ["ArrowUp", "↑", "next slice towards the head", () => state.viewer.step(2, 1)],
  ["ArrowDown", "↓", "next slice towards the feet", () => state.viewer.step(2, -1)],
  ["n", "n", "next slice by expected error", () => nextRanked(1)],
  ["p", "p", "the one before", () => nextRanked(-1)],
  ["j", "j", "next case", () => neighbour(1)],
  ["k", "k", "the case before", () => neighbour(-1)],
  ["v", "v", "look", () => setTool("look")],
  ["b", "b", "brush", () => setTool("brush")],
  ["e", "e", "eraser", () => setTool("eraser")],
  ["[", "[", "smaller brush", () => setRadius(radius() - 0.5)],
  ["]", "]", "larger brush", () => setRadius(radius() + 0.5)],
  ["z", "z", "undo", () => undo(true)],
  ["y", "y", "redo", () => undo(false)],
  ["c", "c", "clear the structure from this slice", clearSlice],
  ["f", "f", "fill the slices between", fillBetween],
  ["o", "o", "outlines, filled, hidden", () => setStyle((state.style + 1) % STYLES.length)],
  ["+", "+", "larger", () => state.viewer.zoom(1.25)],
  ["-", "-", "smaller", () => state.viewer.zoom(0.8)],
  ["0", "0", "whole picture", () => state.viewer.zoom(0)],
  ...WINDOWS.map((w, n) => [String(n + 1), String(n + 1), `window ${w.name.toLowerCase()}`, () => setWindow(n)]),
  ["a", "a", "accept, or save the correction", () => decide(false)],
  ["r", "r", "write why it is rejected", () => $("reason").focus()],
  ["?", "?", "this list", () => $("help").showModal()],
];

function pressed(event) {
  if (isTyping(event) || event.altKey || !state.viewer) return;
  const modified = event.ctrlKey || event.metaKey;
  if (modified && event.key.toLowerCase() !== "z") return;
  const found = KEYS.find(([key]) => key === event.key || (modified && key === event.key.toLowerCase()));
  // NiiVue has keys of its own, which are none of this page's.
  event.stopPropagation();
  if (!found) return;
  event.preventDefault();
  if (stroke || (event.repeat && found[0] === "a")) return; // a key that is held decides once
  if ((!state.mask || isCovered()) && !["j", "k", "?"].includes(event.key)) return;
  if (modified && event.shiftKey) undo(false);
  else found[3]();
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
  options($("window"), WINDOWS.map((w, n) => [n, w.name]), 0);
  options($("style"), STYLES.map((s, n) => [n, s.name]), 0);
  for (const name of Object.keys(PLANES)) {
    const text = name === "all" ? "Three planes" : name[0].toUpperCase() + name.slice(1);
    const button = element("button", { type: "button", textContent: text });
    button.dataset.plane = name;
    button.setAttribute("aria-pressed", String(name === "all"));
    button.addEventListener("click", () => setPlane(name));
    $("planes").append(button);
  }
  for (const [, key, words] of KEYS) {
    const item = element("li", {});
    item.append(element("kbd", { textContent: key }), element("span", { textContent: words }));
    $("keys").append(item);
  }
  $("window").addEventListener("change", () => setWindow(Number($("window").value)));
  $("style").addEventListener("change", () => setStyle(Number($("style").value)));
  $("version").addEventListener("change", () => {
    const wanted = Number($("version").value);
    $("version").value = state.info.shown;
    changeCase(state.name, wanted);
  });
  $("structure").addEventListener("change", markStructure);
  $("whole").addEventListener("click", toggleWhole);
  $("tools").addEventListener("click", (event) => event.target.dataset.tool && setTool(event.target.dataset.tool));
  $("radius").addEventListener("input", () => setRadius(radius()));
  $("undo").addEventListener("click", () => undo(true));
  $("redo").addEventListener("click", () => undo(false));
  $("clear").addEventListener("click", clearSlice);
  $("fill").addEventListener("click", fillBetween);
  $("accept").addEventListener("click", () => decide(false));
  $("reject").addEventListener("click", () => decide(true));
  $("save-beside").addEventListener("click", () => decide(state.pending.rejected, true));
  $("open-theirs").addEventListener("click", () => (state.pending.anew ? openAgain() : changeCase(state.name, state.pending.theirs)));
  $("help-button").addEventListener("click", () => $("help").showModal());
  releaseKeys();
  window.addEventListener("keydown", pressed, true);
  $("stage").addEventListener("wheel", rolled, { capture: true, passive: false });
  $("stage").addEventListener("contextmenu", (event) => event.preventDefault());
  window.addEventListener("beforeunload", (event) => {
    if (!state.mask?.isChanged && !stroke) return;
    event.preventDefault();
    event.returnValue = true; // Chromium before 119 asks for no other reason
  });
}

async function begin() {
  arrange();
  enable();
  try {
    await loadList();
    cover("Preparing the pictures …");
    const viewer = new Viewer(moved);
    await viewer.attach($("planes-canvas"), $("solid-canvas"));
    state.viewer = viewer;
  } catch (error) {
    return cover(error instanceof Refused ? error.message : `This browser cannot draw the pictures (WebGL 2): ${error.message}`);
  }
  const wanted = decodeURIComponent(location.hash.slice(1));
  const known = state.list.some((entry) => entry.name === wanted);
  const first = state.list.find((entry) => !entry.decision) ?? state.list[0];
  if (known || first) await openCase(known ? wanted : first.name);
  else cover("No case can be read.");
}

begin();
// What a test drives and looks at.
window.review = state;
