/* The trace as the page holds it, and the one thing that can be selected: a unit, a pair of rows. */
const data = JSON.parse(document.getElementById("trace").textContent);
const NAMES = ["reference", "candidate"];
const STATES = ["same token", "different tokens", "one side only", "no token recorded"];
const SIGNS = ["=", "≠", "◐", "·"];
const [SAME, DIFFER, ALONE] = [0, 1, 2];
const FORCED = data.mode === "forced";
const units = data.units;

const words = (index) => (index === null || index === undefined ? null : data.strings[index]);
function stepOf(side, index) {
  const found = data.sides[side].steps[index];
  if (!found) return null;
  const [number, seconds, computed, positionIds, cache, keys, first] = found;
  return { index, number, seconds, computed, positionIds, cache, keys, first };
}

function rowOf(side, index) {
  const found = index < 0 ? undefined : data.sides[side].rows[index];
  if (!found) return null;
  const [step, position, token, piece, logprob, entropy, margin, flat] = found;
  const top = [];
  for (let k = 0; k < flat.length; k += 3) top.push({ id: flat[k], piece: words(flat[k + 1]), probability: flat[k + 2] });
  return { index, step, position, token, piece: words(piece), logprob, entropy, margin, top };
}

/* What a side says at a row: the token it committed, or, forced, the one it finds likeliest. */
function said(row) {
  if (!row) return { id: null, piece: null };
  return FORCED && row.top.length ? row.top[0] : { id: row.token, piece: row.piece };
}

function tokenName(piece, id) {
  if (piece !== null && piece !== undefined) return visible(piece);
  return id === null || id === undefined ? "–" : `#${id}`;
}

/* The probability of what a side says. */
function confidence(row) {
  if (!row) return null;
  const found = row.top.find((entry) => entry.id === said(row).id);
  return found ? found.probability : row.logprob === null ? null : Math.exp(row.logprob);
}

const unitRows = (at) => [rowOf(0, units[at][0]), rowOf(1, units[at][1])];
const unitState = (at) => units[at][3];
const unitPosition = (at) => units[at][2];
const rowUnit = [0, 1].map((side) => new Map(units.map((unit, at) => [unit[side], at])));
/* A row on one side only is a difference, unless the recording just stopped there. */
const isDifference = (state) => state === DIFFER || (state === ALONE && data.complete);
const firstDifference = units.findIndex((unit) => isDifference(unit[3]));
const partsAt = data.divergence ? data.divergence.unit : null;

/* Steps of a unit in words: one number when both sides agree on it. */
function stepWords(at) {
  const numbers = unitRows(at).map((row, side) => (row ? stepOf(side, row.step).number : null));
  if (numbers[0] === numbers[1] || numbers[1] === null) return `step ${numbers[0]}`;
  return numbers[0] === null ? `step ${numbers[1]}` : `reference step ${numbers[0]}, candidate step ${numbers[1]}`;
}

const selection = { at: null, from: null, listeners: [], painters: [], waiting: false };
const onSelect = (listener) => selection.listeners.push(listener);
/* For what costs time: runs once a frame, however many selections came before it. */
const onFrame = (painter) => selection.painters.push(painter);

/* Select a unit everywhere; `from` is the part of the page that asked, which then does not scroll itself. */
function select(at, from) {
  if (!units.length) return;
  const to = Math.max(0, Math.min(units.length - 1, at));
  if (to === selection.at) return;
  selection.at = to;
  selection.from = from;
  for (const listener of selection.listeners) listener(to, from);
  if (selection.waiting) return;
  selection.waiting = true;
  requestAnimationFrame(() => {
    selection.waiting = false;
    for (const painter of selection.painters) painter(selection.at, selection.from);
  });
}

function nextDifference(direction) {
  for (let at = selection.at + direction; at >= 0 && at < units.length; at += direction) {
    if (isDifference(unitState(at))) return at;
  }
  return selection.at;
}

function toDivergence() {
  if (partsAt !== null) select(partsAt, "key");
  else if (firstDifference >= 0) select(firstDifference, "key");
}

/* The keys that move the selection; true when the key was one of them. */
function moveByKey(event, from) {
  if (event.ctrlKey || event.metaKey || event.altKey || selection.at === null) return false;
  const move = {
    ArrowRight: () => selection.at + 1, ArrowDown: () => selection.at + 1,
    ArrowLeft: () => selection.at - 1, ArrowUp: () => selection.at - 1,
    PageDown: () => selection.at + Math.max(10, Math.round(units.length / 20)),
    PageUp: () => selection.at - Math.max(10, Math.round(units.length / 20)),
    Home: () => 0, End: () => units.length - 1,
    n: () => nextDifference(1), p: () => nextDifference(-1),
  }[event.key];
  if (!move) return false;
  event.preventDefault();
  select(move(), from);
  return true;
}

/* Fill the window of a canvas at the screen's own resolution; 2-D context in CSS pixels. */
function fitted(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "muted", "line", "soft", "panel", "bar", "bar-2", "rule", "focus", "heat", "bad", "good"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}
readColours();
const FONT = `11px ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif`;

/* Round numbers inside [low, high], about `count` of them, whole. */
function ticks(low, high, count) {
  const rough = Math.max(1, (high - low) / Math.max(1, count));
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough));
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}
