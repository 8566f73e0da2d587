/* The map: one canvas a side, position to the right, step downwards. */
const GUTTER = { left: 46, right: 10, top: 18, bottom: 22 };
const SMALLEST = 8;
const stepCount = Math.max(1, ...data.sides.map((side) => side.steps.length));
const positionCount = (() => {
  let most = data.promptIds.length;
  for (const side of data.sides) {
    for (const step of side.steps) if (step[2]) most = Math.max(most, step[2][1] + 1);
    for (const row of side.rows) most = Math.max(most, row[1] + 1);
  }
  return Math.max(1, most);
})();
const view = { p0: 0, p1: positionCount, s0: 0, s1: stepCount };
const maps = [];

function setView(p0, p1, s0, s1) {
  const fit = (low, high, most) => {
    const span = Math.min(most, Math.max(SMALLEST, high - low));
    const start = Math.max(0, Math.min(most - span, (low + high - span) / 2));
    return [start, start + span];
  };
  [view.p0, view.p1] = fit(p0, p1, positionCount);
  [view.s0, view.s1] = fit(s0, s1, stepCount);
  redraw();
}

function zoom(factor) {
  const at = selection.at;
  const [p, s] = at === null ? [(view.p0 + view.p1) / 2, (view.s0 + view.s1) / 2] : [unitPosition(at) + 0.5, stepForView(at) + 0.5];
  const [ps, ss] = [((view.p1 - view.p0) * factor) / 2, ((view.s1 - view.s0) * factor) / 2];
  setView(p - ps, p + ps, s - ss, s + ss);
}

/* The step that the window follows: the larger of the two sides, a single pass has but one. */
function stepForView(at) {
  return Math.max(...unitRows(at).map((row) => (row ? row.step : 0)));
}

/* Move the window, as little as it takes, until the selected unit is inside. */
function follow(at) {
  const inside = (value, low, high) => {
    const span = high - low;
    if (value >= low && value + 1 <= high) return [low, high];
    const near = value > low - span * 0.1 && value < high + span * 0.1;
    if (!near) return [value - span / 2, value + span / 2];
    return value < low ? [value, value + span] : [value + 1 - span, value + 1];
  };
  const [p0, p1] = inside(unitPosition(at), view.p0, view.p1);
  const [s0, s1] = inside(stepForView(at), view.s0, view.s1);
  if (p0 !== view.p0 || s0 !== view.s0) setView(p0, p1, s0, s1);
  else for (const map of maps) map.mark();
  drawStripMark();
}

function redraw() {
  for (const map of maps) {
    map.draw();
    map.mark();
  }
  drawStrip();
  drawStripMark();
  const whole = view.p1 - view.p0 >= positionCount && view.s1 - view.s0 >= stepCount;
  const range = (low, high) => `${Math.floor(low)}–${Math.ceil(high) - 1}`;
  document.getElementById("window").textContent = whole
    ? `all ${positionCount} positions, ${stepCount} steps`
    : `positions ${range(view.p0, view.p1)}, steps ${range(view.s0, view.s1)}`;
}

function makeMap(box, side) {
  const [base, over] = box.querySelectorAll("canvas");
  const steps = data.sides[side].steps;
  const rows = data.sides[side].rows;
  const area = { w: 1, h: 1 };
  const x = (p) => GUTTER.left + ((p - view.p0) / (view.p1 - view.p0)) * area.w;
  const y = (s) => GUTTER.top + ((s - view.s0) / (view.s1 - view.s0)) * area.h;
  const positionAt = (px) => view.p0 + ((px - GUTTER.left) / area.w) * (view.p1 - view.p0);
  const stepAt = (py) => view.s0 + ((py - GUTTER.top) / area.h) * (view.s1 - view.s0);
  const number = (index) => (steps[index] ? steps[index][0] : index);

  function draw() {
    const { pen, width, height } = fitted(base);
    [area.w, area.h] = [width - GUTTER.left - GUTTER.right, height - GUTTER.top - GUTTER.bottom];
    const { w, h } = area;
    pen.font = FONT;
    frame(pen, w, h, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER.left, GUTTER.top, w, h);
    pen.clip();
    bars(pen);
    pen.restore();
    marks(pen, w, h);
    parting(pen, w, h);
  }

  function frame(pen, w, h, width, height) {
    const known = Math.min(data.promptIds.length, view.p1);
    if (known > view.p0) {
      pen.fillStyle = colours.soft;
      pen.fillRect(x(Math.max(0, view.p0)), GUTTER.top, x(known) - x(Math.max(0, view.p0)), h);
      pen.fillStyle = colours.muted;
      pen.textAlign = "left";
      if (x(known) - GUTTER.left > 44) pen.fillText("prompt", GUTTER.left + 3, GUTTER.top - 6);
    }
    pen.strokeStyle = colours.line;
    pen.fillStyle = colours.muted;
    pen.lineWidth = 1;
    pen.textAlign = "center";
    for (const p of ticks(view.p0, view.p1 - 1, w / 70)) {
      line(pen, x(p + 0.5), GUTTER.top, x(p + 0.5), GUTTER.top + h);
      pen.fillText(String(p), x(p + 0.5), height - GUTTER.bottom + 15);
    }
    pen.textAlign = "right";
    for (const s of ticks(view.s0, view.s1 - 1, h / 36)) {
      line(pen, GUTTER.left, y(s + 0.5), GUTTER.left + w, y(s + 0.5));
      pen.fillText(String(number(s)), GUTTER.left - 7, y(s + 0.5) + 4);
    }
  }

  function bars(pen) {
    const high = y(1) - y(0);
    const gap = high >= 4 ? 1 : 0;
    pen.fillStyle = colours["bar-2"];
    const last = Math.min(steps.length, Math.ceil(view.s1));
    for (let index = Math.max(0, Math.floor(view.s0)); index < last; index += 1) {
      const computed = steps[index][2];
      if (!computed) continue;
      const [left, right] = [x(computed[0]), x(computed[1] + 1)];
      pen.fillRect(left, y(index) + gap / 2, Math.max(1.5, right - left), Math.max(1.5, high - gap));
    }
  }

  function marks(pen, w, h) {
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER.left - 6, GUTTER.top - 6, w + 12, h + 12);
    pen.clip();
    const [wide, high] = [x(1) - x(0), y(1) - y(0)];
    const full = Math.max(2.5, Math.min(9, Math.max(3, Math.min(wide, high) - 1)));
    for (const wanted of [false, true]) {
      for (let index = 0; index < rows.length; index += 1) {
        const [step, position] = rows[index];
        if (step < view.s0 - 1 || step > view.s1 || position < view.p0 - 1 || position > view.p1) continue;
        const unit = rowUnit[side].get(index);
        const state = unit === undefined ? ALONE : unitState(unit);
        if ((state === DIFFER || state === ALONE) !== wanted) continue;
        symbol(pen, state, x(position + 0.5), y(step + 0.5), full);
      }
    }
    pen.restore();
  }

  /* Where the sides part: two dashed lines, and a label on top, where a causal run leaves room. */
  function parting(pen, w, h) {
    const told = data.divergence;
    if (!told) return;
    const row = partsAt === null ? null : unitRows(partsAt)[side];
    const position = told.position === null ? (row ? row.position : null) : told.position;
    const step = row ? row.step : told.step;
    pen.save();
    pen.strokeStyle = colours.rule;
    pen.lineWidth = 1.25;
    pen.setLineDash([5, 4]);
    const [px, py] = [position === null ? null : x(position + 0.5), step === null ? null : y(step + 0.5)];
    const across = px !== null && px >= GUTTER.left && px <= GUTTER.left + w;
    const down = py !== null && py >= GUTTER.top && py <= GUTTER.top + h;
    if (across) line(pen, px, GUTTER.top, px, GUTTER.top + h);
    if (down) line(pen, GUTTER.left, py, GUTTER.left + w, py);
    pen.setLineDash([]);
    if (across || down) {
      const text = [step === null ? "" : `step ${number(step)}`, position === null ? "" : `position ${position}`].filter(Boolean).join(", ");
      label(pen, `parts at ${text}`, across ? px : GUTTER.left + w, down ? py : GUTTER.top + 14, w, h);
    }
    pen.restore();
  }

  function label(pen, text, px, py, w, h) {
    const wide = pen.measureText(text).width + 10;
    const right = GUTTER.left + w;
    const low = py - GUTTER.top < 34;
    const beside = px + 6 + wide < right ? px + 6 : Math.max(GUTTER.left, px - 6 - wide);
    const left = low ? right - wide : beside;
    const top = low ? Math.min(py + 8, GUTTER.top + h - 18) : GUTTER.top + 5;
    pen.fillStyle = colours.panel;
    pen.fillRect(left, top, wide, 17);
    pen.strokeRect(left + 0.5, top + 0.5, wide - 1, 16);
    pen.fillStyle = colours.bad;
    pen.textAlign = "left";
    pen.fillText(text, left + 5, top + 12.5);
  }

  function mark() {
    const { pen } = fitted(over);
    const { w, h } = area;
    if (selection.at === null) return;
    const row = unitRows(selection.at)[side];
    pen.strokeStyle = colours.ink;
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER.left - 1, GUTTER.top - 1, w + 2, h + 2);
    pen.clip();
    const px = x((row ? row.position : unitPosition(selection.at)) + 0.5);
    pen.globalAlpha = 0.45;
    line(pen, px, GUTTER.top, px, GUTTER.top + h);
    if (row) {
      line(pen, GUTTER.left, y(row.step + 0.5), GUTTER.left + w, y(row.step + 0.5));
      pen.globalAlpha = 1;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(px, y(row.step + 0.5), 6.5, 0, 2 * Math.PI);
      pen.stroke();
    }
    pen.restore();
  }

  /* The unit at a place of the canvas: the step under it, and of its rows the nearest one. */
  function pick(px, py) {
    const index = Math.max(0, Math.min(steps.length - 1, Math.floor(stepAt(py))));
    const position = Math.floor(positionAt(px));
    const [first, end] = [steps[index] ? steps[index][6] : 0, steps[index + 1] ? steps[index + 1][6] : rows.length];
    let best = null;
    for (let row = first; row < end; row += 1) {
      if (best === null || Math.abs(rows[row][1] - position) < Math.abs(rows[best][1] - position)) best = row;
    }
    return best === null ? nearestUnit(position) : rowUnit[side].get(best);
  }

  return { box, base, draw, mark, pick, positionAt, stepAt, x, y };
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

/* Same: a square. Different: a larger diamond. One side only: a ring. */
function symbol(pen, state, px, py, full) {
  const half = full / 2;
  if (state === DIFFER) {
    const reach = half + (full >= 4 ? 2 : 1);
    pen.fillStyle = `rgb(${colours.heat})`;
    pen.beginPath();
    pen.moveTo(px, py - reach);
    pen.lineTo(px + reach, py);
    pen.lineTo(px, py + reach);
    pen.lineTo(px - reach, py);
    pen.fill();
  } else if (state === ALONE) {
    pen.strokeStyle = colours.rule;
    pen.lineWidth = 1.5;
    pen.strokeRect(px - half, py - half, full, full);
  } else {
    pen.fillStyle = state === SAME ? colours.bar : colours.muted;
    pen.fillRect(px - half, py - half, full, full);
  }
}

function nearestUnit(position) {
  let best = 0;
  for (let at = 0; at < units.length; at += 1) {
    if (Math.abs(unitPosition(at) - position) < Math.abs(unitPosition(best) - position)) best = at;
  }
  return best;
}
