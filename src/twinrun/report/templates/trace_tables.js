/* The table of all steps, a page at a time, and the filter of the blame table. */
const PAGE = 25;
const steps = { page: 0, shown: [], only: false };

function stateCell(state) {
  const cell = node("td", `state s${state}`, `${SIGNS[state]} `);
  cell.append(node("span", "long", state === SAME ? "same" : STATES[state]));
  return cell;
}

function stepRow(at) {
  const [left, right] = unitRows(at);
  const state = unitState(at);
  const row = node("tr", `s${state}${at === partsAt ? " parts" : ""}`);
  row.dataset.u = String(at);
  const pick = node("button", "pick", stepWords(at).replace(/[a-z ]+/g, "").replace(",", " · "));
  pick.type = "button";
  pick.tabIndex = -1;
  pick.setAttribute("aria-label", describe(at));
  const head = node("th");
  head.scope = "row";
  head.append(pick);
  const token = (found) => {
    const cell = node("td", "token");
    if (found) cell.append(node("code", "", tokenName(said(found).piece, said(found).id)), node("small", "", ` #${said(found).id ?? "–"}`));
    else cell.append(node("span", "none", "–"));
    return cell;
  };
  const time = (side, found) => node("td", "r num extra", found ? duration(stepOf(side, found.step).seconds) : "–");
  row.append(
    head, node("td", "r num", String(unitPosition(at))), stateCell(state),
    token(left), node("td", "r num", percent(confidence(left))), token(right), node("td", "r num", percent(confidence(right))),
    node("td", "r num extra", short(gaps[at])), node("td", "r num extra", left ? short(left.margin) : "–"), time(0, left), time(1, right),
  );
  return row;
}

function drawSteps() {
  const pages = Math.max(1, Math.ceil(steps.shown.length / PAGE));
  steps.page = Math.max(0, Math.min(pages - 1, steps.page));
  const part = steps.shown.slice(steps.page * PAGE, (steps.page + 1) * PAGE);
  document.querySelector("#steps tbody").replaceChildren(...part.map(stepRow));
  document.getElementById("page-place").textContent = `page ${steps.page + 1} of ${pages}, ${steps.shown.length} rows`;
  document.getElementById("page-previous").disabled = steps.page === 0;
  document.getElementById("page-next").disabled = steps.page === pages - 1;
  markStep();
}

function markStep() {
  const rows = [...document.querySelectorAll("#steps tbody tr")];
  let marked = null;
  for (const row of rows) {
    const here = Number(row.dataset.u) === selection.at;
    row.classList.toggle("selected", here);
    if (here) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    row.querySelector(".pick").tabIndex = -1;
    if (here) marked = row;
  }
  const stop = marked || rows[0];
  if (stop) stop.querySelector(".pick").tabIndex = 0;
}

function followStep(at, from) {
  const index = steps.shown.indexOf(at);
  const page = Math.floor(index / PAGE);
  if (index >= 0 && page !== steps.page) {
    steps.page = page;
    drawSteps();
  } else markStep();
  if (from === "step-key") {
    const button = document.querySelector("#steps tr.selected .pick");
    if (button) button.focus();
  }
}

function listSteps() {
  steps.shown = [];
  for (let at = 0; at < units.length; at += 1) {
    if (!steps.only || unitState(at) !== SAME) steps.shown.push(at);
  }
}

/* Keys in the table walk its rows, which a filter may have thinned. */
function stepKeys(event) {
  if (!event.target.closest("tbody") || event.ctrlKey || event.metaKey || event.altKey) return;
  const here = steps.shown.indexOf(selection.at);
  const last = steps.shown.length - 1;
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + PAGE, PageUp: here - PAGE, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  select(steps.shown[Math.max(0, Math.min(last, to))], "step-key");
}

function startTables() {
  const table = document.getElementById("steps");
  listSteps();
  drawSteps();
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) select(Number(row.dataset.u), "step-key");
  });
  table.addEventListener("keydown", stepKeys);
  const turn = (by) => () => {
    steps.page += by;
    drawSteps();
  };
  document.getElementById("page-previous").addEventListener("click", turn(-1));
  document.getElementById("page-next").addEventListener("click", turn(1));
  document.getElementById("only-different").addEventListener("change", (event) => {
    steps.only = event.target.checked;
    listSteps();
    steps.page = Math.max(0, Math.floor(steps.shown.findIndex((at) => at >= selection.at) / PAGE));
    drawSteps();
  });
  onSelect(followStep);
  startBlame();
}

function startBlame() {
  const input = document.getElementById("module-filter");
  if (!input) return;
  const rows = [...document.querySelectorAll("#modules tbody tr")];
  const texts = rows.map((row) => row.dataset.module.toLowerCase());
  const only = document.getElementById("only-over");
  const apply = () => {
    const wanted = input.value.trim().toLowerCase().split(/\s+/);
    let count = 0;
    rows.forEach((row, i) => {
      const fits = wanted.every((part) => texts[i].includes(part)) && (!only.checked || row.classList.contains("over"));
      row.hidden = !fits;
      count += fits;
    });
    document.getElementById("module-count").textContent = `${count} of ${rows.length} modules`;
  };
  input.addEventListener("input", apply);
  only.addEventListener("change", apply);
  apply();
  const first = document.querySelector("#modules tr.first");
  if (first) keepInside(document.getElementById("modules"), first);
}
