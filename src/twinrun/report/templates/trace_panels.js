/* The panel of the selected unit, and both texts. */
const quote = (row) => {
  const found = said(row);
  return row ? `“${tokenName(found.piece, found.id)}”` : "nothing";
};

/* One sentence: where the selection stands and what both sides say there. */
function describe(at) {
  const [left, right] = unitRows(at);
  const place = `Position ${unitPosition(at)}, ${stepWords(at)}: ${STATES[unitState(at)]}`;
  if (unitState(at) === SAME) return `${place}, ${quote(left)}.`;
  return `${place}. The reference says ${quote(left)}, the candidate ${quote(right)}.`;
}

function sidePanel(side, row, other) {
  const box = node("div", "side");
  const head = node("h4", "", NAMES[side]);
  head.append(node("small", "", ` ${harmless(String(data.sides[side].runner))}`));
  box.append(head);
  if (!row) box.append(node("p", "none", "no row at this step"));
  else if (!row.top.length) box.append(node("p", "none", `says ${quote(row)}; no probabilities recorded`));
  const others = new Set(other ? other.top.map((entry) => entry.id) : []);
  for (const entry of row ? row.top : []) {
    const alone = other && other.top.length > 0 && !others.has(entry.id);
    const chosen = entry.id === row.token;
    const line = node("div", `alt${chosen ? " same" : ""}${alone ? " alone" : ""}`);
    const bar = node("i");
    bar.style.width = `${(100 * Math.max(0, Math.min(1, entry.probability || 0))).toFixed(1)}%`;
    const name = node("code", "", tokenName(entry.piece, entry.id));
    name.title = `token ${entry.id}`;
    const id = node("small", "id", `${alone ? "◇ " : ""}#${entry.id}`);
    if (alone) id.append(node("span", "hide", " only among this side's five"));
    line.append(bar, name, id, node("span", "num", percent(entry.probability)));
    box.append(line);
  }
  return box;
}

function cacheWords(cache) {
  if (cache === null || cache === undefined) return "–";
  if (!Array.isArray(cache)) return `${cache} in every layer`;
  if (!cache.length) return "empty";
  const parts = [];
  let start = 0;
  for (let layer = 1; layer <= cache.length; layer += 1) {
    if (cache[layer] === cache[start] && layer < cache.length) continue;
    parts.push(`${cache[start]} (${start === layer - 1 ? `layer ${start}` : `${start}–${layer - 1}`})`);
    start = layer;
  }
  return parts.length > 8 ? `${parts.slice(0, 8).join(", ")}, …` : parts.join(", ");
}

const range = (pair) => (pair ? (pair[0] === pair[1] ? String(pair[0]) : `${pair[0]}–${pair[1]}`) : "–");
const cacheKey = (cache) => (cache === null || cache === undefined ? null : JSON.stringify(cache));

/* The position id of a row, when its step tells: the ids of a step run along with its positions. */
function positionId(step, row) {
  if (!row || !step.positionIds || !step.computed) return null;
  const id = step.positionIds[0] + (row.position - step.computed[0]);
  return id <= step.positionIds[1] ? id : step.positionIds[1];
}

/* The most keys that a row may attend to, when it is the last of its step. */
const keysOf = (step, row) => (row && step.keys && step.computed && step.computed[1] === row.position ? step.keys[1] : null);

/* Rows of the comparison: name, text of both sides, and what tells them apart. */
function facts(rows) {
  const steps = rows.map((row, side) => (row ? stepOf(side, row.step) : null));
  const both = rows[0] && rows[1];
  const identity = (keys) => (keys[0] === null || keys[1] === null ? "" : keys[0] === keys[1] ? "same" : "≠ differ");
  const number = (name, key) => {
    const values = rows.map((row) => (row ? row[key] : null));
    const known = both && values[0] !== null && values[1] !== null;
    return [name, ...values.map(short), known ? (values[1] === values[0] ? "0" : `Δ ${short(values[1] - values[0])}`) : ""];
  };
  const fact = (name, show, key) => [name, ...steps.map((step) => (step ? show(step) : "–")), key ? identity(steps.map((step, side) => (step ? key(step, rows[side]) : null))) : ""];
  const tokens = rows.map((row) => said(row).id);
  return [
    [FORCED ? "likeliest token" : "token", ...rows.map((row) => (row ? tokenName(said(row).piece, said(row).id) : "–")), identity(tokens)],
    ...(FORCED ? [["token of the text", ...rows.map((row) => (row ? tokenName(row.piece, row.token) : "–")), identity(rows.map((row) => (row ? row.token : null)))]] : []),
    number("log-probability, nats", "logprob"),
    number("entropy, nats", "entropy"),
    number("margin, top 1 to 2", "margin"),
    fact("step", (step) => String(step.number)),
    fact("computed positions", (step) => range(step.computed)),
    fact("position ids", (step) => range(step.positionIds), positionId),
    fact("keys attended", (step) => range(step.keys), keysOf),
    fact("cache length", (step) => cacheWords(step.cache), (step) => cacheKey(step.cache)),
    fact("time, recording", (step) => duration(step.seconds)),
  ];
}

function comparison(rows) {
  const table = node("table", "facts-table");
  const head = table.createTHead().insertRow();
  for (const name of ["", "reference", "candidate", "difference"]) {
    const cell = node("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const [name, left, right, difference] of facts(rows)) {
    const line = body.insertRow();
    const label = node("th", "", name);
    label.scope = "row";
    line.append(label, node("td", "", left), node("td", "", right), node("td", "gap", difference));
    if (difference.startsWith("≠")) line.className = "apart";
  }
  return table;
}

function showPanel(at) {
  const rows = unitRows(at);
  document.getElementById("here").textContent = describe(at);
  const title = document.getElementById("unit-title");
  const words = stepWords(at);
  title.replaceChildren(`${words[0].toUpperCase()}${words.slice(1)}, position ${unitPosition(at)} `, node("span", `state s${unitState(at)}`, `${SIGNS[unitState(at)]} ${STATES[unitState(at)]}`));
  const sides = node("div", "sides");
  sides.append(sidePanel(0, rows[0], rows[1]), sidePanel(1, rows[1], rows[0]));
  const note = node("p", "caption", `Underlined: the token ${FORCED ? "of the text" : "this side went on with"}. ◇ only among this side's five.`);
  document.getElementById("unit").replaceChildren(sides, note, comparison(rows));
}

/* Both texts, a token an element; from the first difference on they are marked. */
const tokens = [new Map(), new Map()];

function buildText(side) {
  const host = document.getElementById(`text-${NAMES[side]}`);
  const made = document.createDocumentFragment();
  let chunk = null;
  host.classList.toggle("many", units.length > 1024);
  for (let at = 0; at < units.length; at += 1) {
    const row = rowOf(side, units[at][side]);
    if (!row) continue;
    const found = said(row);
    const text = found.piece === null ? tokenName(null, found.id) : harmless(found.piece).replaceAll("\n", "↵\n");
    const late = firstDifference >= 0 && at >= firstDifference;
    const state = unitState(at);
    const span = node("span", `tok${late ? " late" : ""}${isDifference(state) ? " differs" : ""}${at === partsAt ? " parts" : ""}`, text || "∅");
    span.dataset.u = String(at);
    span.tabIndex = -1;
    tokens[side].set(at, span);
    if (!chunk) made.append((chunk = node("div", "chunk")));
    chunk.append(span);
    const size = chunk.childElementCount;
    if (size >= 512 || (size >= 128 && text.endsWith("\n"))) chunk = null;
  }
  host.append(made);
  if (!tokens[side].size) host.append(node("span", "none", "no tokens recorded"));
  const chosen = (event) => {
    const span = event.target.closest(".tok");
    if (span) select(Number(span.dataset.u), `text-${side}`);
  };
  for (const name of ["pointerover", "focusin", "click"]) host.addEventListener(name, chosen);
  host.addEventListener("keydown", (event) => {
    if (!moveByKey(event, "token-key")) return;
    const span = tokens[side].get(selection.at);
    if (span) span.focus({ preventScroll: true });
  });
}

function showText(at, from) {
  for (const side of [0, 1]) {
    const host = document.getElementById(`text-${NAMES[side]}`);
    for (const old of host.querySelectorAll(".selected")) {
      old.classList.remove("selected");
      old.tabIndex = -1;
    }
    const span = tokens[side].get(at);
    if (!span) continue;
    span.classList.add("selected");
    span.tabIndex = 0;
    if (from === `text-${side}`) continue;
    keepInside(host, span);
  }
}

/* Scroll a box, never the page, until a part of it shows. */
function keepInside(box, part) {
  const [outer, inner] = [box.getBoundingClientRect(), part.getBoundingClientRect()];
  if (inner.top < outer.top + 20 || inner.bottom > outer.bottom - 20) {
    box.scrollTop += inner.top - outer.top - outer.height / 2;
  }
}

function startPanels() {
  if (!units.length) return;
  for (const side of [0, 1]) buildText(side);
  onSelect(showPanel);
  onFrame(showText);
}
