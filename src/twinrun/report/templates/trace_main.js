/* Start every part, then select where the sides part. */
startMap();
startPanels();
startCurves();
startTables();
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input, textarea, select");
  if (event.key !== "d" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  toDivergence();
});
select(partsAt !== null ? partsAt : Math.max(0, firstDifference), "start");
redraw();
document.documentElement.dataset.ready = "yes";
