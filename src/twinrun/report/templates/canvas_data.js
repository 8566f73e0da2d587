/* The trace as the page holds it: what each side's canvas holds at any step. */
const data = JSON.parse(document.getElementById("trace").textContent);
const MASK = "□";
const lastStep = Math.max(0, ...data.sides.map((side) => side.steps.length - 1));
const words = (index) => data.strings[index];

function stepOf(side, number) {
  const found = data.sides[side].steps[number];
  if (!found) return null;
  const [block, blockStep, full, seconds, begin, confidence, proposals, commits, writes, skipped, cosine, compared] = found;
  return { block, blockStep, full, seconds, begin, confidence, proposals, commits, writes, skipped, cosine, compared };
}

/* Position -> what it shows behind step `number`: text, or what is proposed for it, and how sure that is. */
function canvasAt(side, number) {
  const cells = new Map();
  const steps = data.sides[side].steps;
  const until = Math.min(number, steps.length - 1);
  for (let at = 0; at <= until; at += 1) {
    const step = stepOf(side, at);
    for (const [position, piece] of step.commits) {
      cells.set(position, { text: words(piece), sure: step.confidence[position - step.begin], just: at === number, since: at });
    }
    for (const [position, piece] of step.writes) cells.set(position, { text: words(piece), sure: null, just: false, since: at });
  }
  return cells;
}

/* What one position of a side is at a step, in words. */
function describe(side, number, position) {
  const { name, steps } = data.sides[side];
  const step = stepOf(side, Math.min(number, steps.length - 1));
  if (!step) return `${name}: no step`;
  const held = canvasAt(side, number).get(position);
  const at = position - step.begin;
  const inside = at >= 0 && at < step.proposals.length;
  const parts = [];
  if (held) parts.push(`“${visible(held.text)}” since step ${held.since}${held.sure === null || held.sure === undefined ? "" : `, ${percent(held.sure)} sure`}`);
  else if (inside && step.confidence[at] !== null) parts.push(`mask; proposed “${visible(words(step.proposals[at]))}”, ${percent(step.confidence[at])} sure`);
  else parts.push("mask");
  if (step.skipped.includes(position)) parts.push("skipped");
  if (inside && step.cosine && step.cosine[at] !== null) parts.push(`mean cosine ${step.cosine[at]}`);
  if (inside && step.compared && step.compared[at] !== position) parts.push(`compared with position ${step.compared[at]}`);
  return `${name}: ${parts.join("; ")}`;
}
