/* The strip: one column a unit. A short tick is the same token, a tall one another. */
const strip = document.getElementById("strip");
const [stripBase, stripOver] = strip.querySelectorAll("canvas");
const gaps = units.map((unit) => {
  const [left, right] = [rowOf(0, unit[0]), rowOf(1, unit[1])];
  const known = left && right && left.logprob !== null && right.logprob !== null && left.token === right.token;
  return known ? Math.abs(left.logprob - right.logprob) : null;
});
const STRIP_RIGHT = 38;
const GAP_LOW = -9;
const GAP_HIGH = 1;

function drawStrip() {
  const { pen, width, height } = fitted(stripBase);
  const w = width - GUTTER.left - STRIP_RIGHT;
  const column = w / Math.max(1, units.length);
  const split = 20;
  pen.font = FONT;
  pen.fillStyle = colours.muted;
  pen.textAlign = "right";
  pen.fillText("token", GUTTER.left - 7, 14);
  pen.fillText("Δ log p", GUTTER.left - 4, split + 28);
  pen.strokeStyle = colours.line;
  for (const power of [-8, -4, 0]) {
    const at = height - ((power - GAP_LOW) / (GAP_HIGH - GAP_LOW)) * (height - split - 4);
    line(pen, GUTTER.left, at, GUTTER.left + w, at);
    pen.textAlign = "left";
    pen.fillText(power === 0 ? "1" : `1e${power}`, GUTTER.left + w + 5, Math.min(height - 2, at + 4));
  }
  for (const wanted of [false, true]) {
    for (let at = 0; at < units.length; at += 1) {
      const state = unitState(at);
      const odd = state === DIFFER || state === ALONE;
      if (odd !== wanted) continue;
      const left = GUTTER.left + at * column;
      pen.fillStyle = state === DIFFER ? `rgb(${colours.heat})` : state === SAME ? colours.bar : state === ALONE ? colours.rule : colours.muted;
      const wide = Math.max(1, column - (column > 3 ? 1 : 0));
      if (state === ALONE) {
        pen.fillRect(left, 2, wide, 1.5);
        pen.fillRect(left, 15.5, wide, 1.5);
      } else if (odd) pen.fillRect(left, 2, wide, 15);
      else pen.fillRect(left, 11, wide, 6);
      if (gaps[at] === null) continue;
      const power = gaps[at] > 0 ? Math.log10(gaps[at]) : GAP_LOW;
      const tall = Math.max(1.5, Math.min(1, (power - GAP_LOW) / (GAP_HIGH - GAP_LOW)) * (height - split - 4));
      pen.fillStyle = colours["bar-2"];
      pen.fillRect(left, height - tall, wide, tall);
    }
  }
}

function drawStripMark() {
  const { pen, width, height } = fitted(stripOver);
  const w = width - GUTTER.left - STRIP_RIGHT;
  const at = (unit) => GUTTER.left + ((unit + 0.5) / Math.max(1, units.length)) * w;
  if (partsAt !== null) {
    pen.strokeStyle = colours.rule;
    pen.setLineDash([4, 3]);
    line(pen, at(partsAt), 0, at(partsAt), height);
    pen.setLineDash([]);
  }
  if (selection.at === null) return;
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 2;
  line(pen, at(selection.at), 0, at(selection.at), height);
}

/* Pointer on a map: a click selects, a drag zooms into the rectangle, a move reads out. */
function listen(map) {
  const canvas = map.box.querySelector(".over");
  const brush = map.box.querySelector(".brush");
  let start = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = place(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    brush.hidden = Math.abs(x - start[0]) < 6 && Math.abs(y - start[1]) < 6;
    brush.style.left = `${Math.min(x, start[0])}px`;
    brush.style.top = `${Math.min(y, start[1])}px`;
    brush.style.width = `${Math.abs(x - start[0])}px`;
    brush.style.height = `${Math.abs(y - start[1])}px`;
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    const from = start;
    start = null;
    if (brush.hidden) {
      if (units.length) select(map.pick(x, y), "map");
      return;
    }
    brush.hidden = true;
    const sorted = (a, b) => [Math.min(a, b), Math.max(a, b)];
    setView(...sorted(map.positionAt(x), map.positionAt(from[0])), ...sorted(map.stepAt(y), map.stepAt(from[1])));
  });
  canvas.addEventListener("pointercancel", () => {
    start = null;
    brush.hidden = true;
  });
  canvas.addEventListener("dblclick", () => setView(0, positionCount, 0, stepCount));
}

function startMap() {
  for (const side of [0, 1]) {
    const map = makeMap(document.getElementById(`map-${NAMES[side]}`), side);
    maps.push(map);
    listen(map);
    map.box.addEventListener("keydown", mapKeys);
    map.box.setAttribute("aria-valuemax", String(Math.max(0, units.length - 1)));
  }
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    const share = (event.clientX - box.left - GUTTER.left) / (box.width - GUTTER.left - STRIP_RIGHT);
    select(Math.floor(share * units.length), "strip");
  });
  const actions = {
    "zoom-in": () => zoom(0.5), "zoom-out": () => zoom(2), "zoom-all": () => setView(0, positionCount, 0, stepCount),
    "to-divergence": toDivergence, "next-difference": () => select(nextDifference(1), "key"),
    "previous-difference": () => select(nextDifference(-1), "key"),
  };
  for (const [id, action] of Object.entries(actions)) document.getElementById(id).addEventListener("click", action);
  document.getElementById("to-divergence").disabled = partsAt === null && firstDifference < 0;
  for (const id of ["next-difference", "previous-difference"]) document.getElementById(id).disabled = firstDifference < 0;
  new ResizeObserver(redraw).observe(maps[0].box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    redraw();
    drawCurves();
  });
  onFrame(follow);
  onSelect((at) => {
    for (const map of maps) {
      map.box.setAttribute("aria-valuenow", String(at));
      map.box.setAttribute("aria-valuetext", describe(at));
    }
  });
}

function mapKeys(event) {
  if (moveByKey(event, "map")) return;
  const action = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => setView(0, positionCount, 0, stepCount) }[event.key];
  if (action && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    action();
  }
}
