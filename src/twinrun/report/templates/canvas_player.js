/* The player: one number, the step, and what both canvases look like behind it. */
const still = matchMedia("(prefers-reduced-motion: reduce)");
const state = { step: lastStep, position: null, timer: null, proposals: false };
const figures = data.sides.map((side) => {
  const box = document.getElementById(`side-${side.name}`);
  const cells = new Map([...box.querySelectorAll(".cell")].map((cell) => [Number(cell.dataset.p), cell]));
  return { box, cells, now: document.getElementById(`now-${side.name}`), blocks: [...box.querySelectorAll(".block")] };
});
const element = (id) => document.getElementById(id);
const tableRows = [...document.querySelectorAll(".canvas-steps tbody tr")];

function paint(side) {
  const figure = figures[side];
  const steps = data.sides[side].steps;
  const number = Math.min(state.step, steps.length - 1);
  const step = stepOf(side, number);
  const over = state.step > steps.length - 1;
  const held = canvasAt(side, number);
  for (const [position, cell] of figure.cells) {
    const found = held.get(position);
    const at = step ? position - step.begin : -1;
    const proposed = step && !found && at >= 0 && at < step.proposals.length && step.confidence[at] !== null;
    const sure = found ? found.sure : proposed ? step.confidence[at] : null;
    const shown = found ? found.text : proposed && state.proposals ? words(step.proposals[at]) : null;
    cell.firstElementChild.textContent = shown === null ? MASK : visible(shown);
    cell.style.setProperty("--k", String(sure ?? 0));
    cell.classList.toggle("open", !found);
    cell.classList.toggle("proposal", !found && shown !== null);
    cell.classList.toggle("just", Boolean(found && found.just && !over));
    cell.classList.toggle("skipped", Boolean(step && !over && step.skipped.includes(position)));
    cell.classList.toggle("selected", position === state.position);
  }
  figure.blocks.forEach((block) => block.classList.toggle("current", Boolean(step && !over && Number(block.dataset.block) === step.block)));
  figure.now.textContent = !step ? "no steps" : over ? `ended after step ${steps.length - 1}` : stepWords(step);
}

function stepWords(step) {
  const count = step.commits.length;
  const skipped = step.skipped.length ? `, ${step.skipped.length} skipped` : "";
  return `block ${step.block}, step ${step.blockStep}: ${step.full ? "whole canvas" : "part"}, ${count} committed${skipped}`;
}

function redraw() {
  figures.forEach((_figure, side) => paint(side));
  element("scrub").value = String(state.step);
  element("step-number").textContent = `step ${state.step} of ${lastStep}`;
  element("scrub").setAttribute("aria-valuetext", `step ${state.step}`);
  tableRows.forEach((row, at) => row.classList.toggle("current", at === state.step));
  tell();
}

function tell() {
  const position = state.position;
  element("readout").textContent = position === null ? "" : `Position ${position}. ${data.sides.map((_s, side) => describe(side, state.step, position)).join(". ")}.`;
}

function go(step) {
  const to = Math.max(0, Math.min(lastStep, step));
  if (to === state.step) return false;
  state.step = to;
  redraw();
  return true;
}

function pick(position) {
  const known = [...figures[0].cells.keys()];
  if (!known.length) return;
  state.position = Math.max(known[0], Math.min(known[known.length - 1], position));
  redraw();
}

/* Playing is asked for, never begun alone; with reduced motion a step takes a second and nothing moves in between. */
function play(on) {
  clearInterval(state.timer);
  state.timer = null;
  if (on) {
    if (state.step >= lastStep) go(0);
    state.timer = setInterval(() => {
      if (!go(state.step + 1)) play(false);
    }, still.matches ? 1000 : 350);
  }
  element("play").setAttribute("aria-pressed", String(on));
  element("play-sign").textContent = on ? "❚❚" : "▶";
  element("play-word").textContent = on ? "Pause" : "Play";
}

function toParting() {
  play(false);
  if (data.parts !== null) go(data.parts);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target.closest ? event.target : document.body;
  const own = target.closest("input, textarea, select, summary, .scroll");
  const moves = {
    ArrowRight: () => go(state.step + 1), ArrowLeft: () => go(state.step - 1), Home: () => go(0), End: () => go(lastStep),
    ArrowDown: () => pick((state.position ?? figures[0].cells.keys().next().value - 1) + 1),
    ArrowUp: () => pick((state.position ?? figures[0].cells.keys().next().value + 1) - 1),
    " ": () => play(state.timer === null), d: toParting,
  };
  const move = moves[event.key];
  if (!move || (own && event.key !== "d") || (event.key === " " && target.closest("button, a"))) return;
  event.preventDefault();
  if (event.key !== " " && event.key !== "d") play(false);
  move();
}
