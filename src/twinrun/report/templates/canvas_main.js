/* Start the player at the step where the runs part, or at the end. */
document.querySelector(".player").hidden = false;
element("scrub").max = String(lastStep);
const actions = {
  "to-start": () => go(0), "to-end": () => go(lastStep), "step-back": () => go(state.step - 1),
  "step-on": () => go(state.step + 1), "to-parting": toParting,
};
for (const [id, action] of Object.entries(actions)) {
  element(id).addEventListener("click", () => {
    play(false);
    action();
  });
}
element("to-parting").disabled = data.parts === null;
element("play").addEventListener("click", () => play(state.timer === null));
element("scrub").addEventListener("input", () => {
  play(false);
  go(Number(element("scrub").value));
});
element("proposals").addEventListener("change", () => {
  state.proposals = element("proposals").checked;
  redraw();
});
for (const figure of figures) {
  figure.box.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) pick(Number(cell.dataset.p));
  });
}
document.addEventListener("keydown", keys);
if (data.parts !== null) state.step = Math.min(lastStep, data.parts);
redraw();
document.documentElement.dataset.ready = "yes";
