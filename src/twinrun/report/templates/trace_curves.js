/* How far apart the two sides' hidden states are, layer by layer, at the selected position. */
const curves = data.curves;
const SVG = "http://www.w3.org/2000/svg";
let layerAt = null;
let layerChosen = false;

function draw(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/* Powers of ten that hold every positive number of some rows. */
function decades(rows) {
  let [low, high] = [Infinity, -Infinity];
  for (const row of rows) {
    for (const value of row) {
      if (value === null || !(value > 0)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (low > high) return [-8, 0];
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  return [first, Math.max(last, first + 1)];
}

/* The recorded curve for a position: its own, or the last one before it. */
function curveIndex(position) {
  let best = 0;
  for (let i = 0; i < curves.positions.length; i += 1) {
    const nearer = curves.positions[i] <= position && (curves.positions[best] > position || curves.positions[i] >= curves.positions[best]);
    if (nearer) best = i;
  }
  return best;
}

const plain = (layer) => (/^\d+$/.test(layer) ? `layer ${layer}` : visible(layer));
const beyond = (i, layer) => curves.error[i][layer] !== null && curves.noise[layer] !== null && curves.error[i][layer] > curves.noise[layer];

function chart(host, values, noise, over, [low, high]) {
  const width = Math.max(240, host.clientWidth);
  const [height, left, right, top, bottom] = [210, 44, 10, 8, 34];
  const count = values.length;
  const x = (i) => left + ((i + 0.5) / count) * (width - left - right);
  const y = (value) => {
    const power = value > 0 ? Math.max(low, Math.min(high, Math.log10(value))) : low;
    return top + (1 - (power - low) / (high - low)) * (height - top - bottom);
  };
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const every = Math.max(1, Math.ceil((high - low) / 6));
  for (let power = low; power <= high; power += every) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(10 ** power), y2: y(10 ** power) }));
    svg.append(draw("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, power === 0 ? "1" : `1e${power}`));
  }
  if (noise) svg.append(...bands(noise, x, y, height - bottom, (width - left - right) / count));
  names(svg, count, x, height, bottom, (width - left - right) / count);
  svg.append(draw("line", { class: "cursor", x1: x(layerAt), x2: x(layerAt), y1: top, y2: height - bottom }));
  let path = "";
  values.forEach((value, i) => {
    if (value !== null) path += `${path && values[i - 1] !== null ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
  });
  svg.append(draw("path", { class: "curve", d: path }));
  values.forEach((value, i) => {
    if (value === null) return;
    if (over(i)) svg.append(draw("path", { class: "over", d: `M${x(i)} ${y(value) - 6}l6 6l-6 6l-6-6z` }));
    else svg.append(draw("circle", { class: value > 0 ? "dot" : "dot zero", cx: x(i), cy: y(value), r: i === layerAt ? 4.5 : 3 }));
  });
  host.replaceChildren(svg);
  return (px) => Math.max(0, Math.min(count - 1, Math.floor(((px - left) / (width - left - right)) * count)));
}

/* The shaded band below which rounding explains an error, broken where the noise is unknown. */
function bands(noise, x, y, floor, wide) {
  const found = [];
  let run = [];
  const close = () => {
    if (run.length) {
      const line = [[x(run[0]) - wide / 2, y(noise[run[0]])], ...run.map((i) => [x(i), y(noise[i])]), [x(run.at(-1)) + wide / 2, y(noise[run.at(-1)])]];
      const points = line.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`);
      const [first, last] = [line[0][0].toFixed(1), line.at(-1)[0].toFixed(1)];
      found.push(draw("polygon", { class: "band", points: [...points, `${last},${floor}`, `${first},${floor}`].join(" ") }));
      found.push(draw("polyline", { class: "edge", points: points.join(" ") }));
    }
    run = [];
  };
  noise.forEach((value, i) => (value === null ? close() : run.push(i)));
  close();
  return found;
}

function names(svg, count, x, height, bottom, wide) {
  const labels = curves.layers.map((layer) => {
    const text = visible(layer);
    return text.length > 10 ? `${text.slice(0, 9)}…` : text;
  });
  const typical = 7 * Math.max(2, ...labels.slice(1).map((text) => text.length)) + 6;
  const every = Math.max(1, Math.ceil(typical / wide));
  const first = 7 * labels[0].length;
  for (let i = 0; i < count; i += 1) {
    const beside = i > 0 && x(i) - x(0) < first / 2 + typical / 2;
    if (i > 0 && (i % every !== 0 || beside)) continue;
    const start = Math.max(x(i), first / 2 + 2);
    svg.append(draw("text", { x: i === 0 ? start : x(i), y: height - bottom + 16, "text-anchor": "middle" }, labels[i]));
  }
  svg.append(draw("text", { class: "axis", x: x((count - 1) / 2), y: height - 3, "text-anchor": "middle" }, "layer"));
}

let ranges = null;
let layerFinder = null;

function drawCurves() {
  if (!curves || selection.at === null) return;
  ranges = ranges || { error: decades([...curves.error, curves.noise]), angle: decades(curves.angle) };
  const i = curveIndex(unitPosition(selection.at));
  const first = curves.layers.findIndex((_, layer) => beyond(i, layer));
  if (!layerChosen) layerAt = first >= 0 ? first : curves.layers.length - 1;
  const host = document.getElementById("curve-error");
  layerFinder = chart(host, curves.error[i], curves.noise, (layer) => beyond(i, layer), ranges.error);
  chart(document.getElementById("curve-angle"), curves.angle[i], null, () => false, ranges.angle);
  tellCurve(i);
  drawHeat();
}

function tellCurve(i) {
  const position = curves.positions[i];
  const exact = position === unitPosition(selection.at);
  const first = curves.layers.findIndex((_, layer) => beyond(i, layer));
  const known = curves.noise.some((value) => value !== null);
  const verdict = first >= 0 ? `Beyond rounding from ${plain(curves.layers[first])} on.` : known ? "Every layer is inside what rounding explains." : "";
  const where = exact ? `Position ${position}.` : `There is no curve for position ${unitPosition(selection.at)}; this is position ${position}.`;
  document.getElementById("curve-place").textContent = `${where} ${verdict}`;
  const text = `${plain(curves.layers[layerAt])}: relative error ${short(curves.error[i][layerAt])}, rounding explains ${short(curves.noise[layerAt])}, 1 − cosine ${short(curves.angle[i][layerAt])}`;
  document.getElementById("curve-value").textContent = text;
  for (const host of document.querySelectorAll(".chart")) {
    host.setAttribute("aria-valuenow", String(layerAt));
    host.setAttribute("aria-valuetext", text);
  }
  const details = document.getElementById("curve-table");
  if (details.open) fillCurveTable(i);
}

function fillCurveTable(i) {
  const body = document.querySelector("#curve-table tbody");
  body.replaceChildren(
    ...curves.layers.map((layer, at) => {
      const line = node("tr", beyond(i, at) ? "over" : "");
      const name = node("th", "", plain(layer));
      name.scope = "row";
      const cells = [short(curves.error[i][at]), short(curves.noise[at]), short(curves.angle[i][at]), beyond(i, at) ? "▲ beyond" : ""];
      line.append(name, ...cells.map((text) => node("td", "r", text)));
      return line;
    }),
  );
}

/* All positions at once: a column a curve, a row a layer, darker the further beyond rounding. */
function drawHeat() {
  const canvas = document.getElementById("heat");
  const { pen, width, height } = fitted(canvas);
  const [left, right, bottom] = [GUTTER.left, GUTTER.right, 20];
  const [columns, rows] = [curves.positions.length, curves.layers.length];
  heatImage = heatImage || {};
  const key = colours.heat + colours.soft;
  if (heatImage.key !== key) heatImage = { key, image: paintHeat(columns, rows) };
  pen.imageSmoothingEnabled = false;
  const [w, h] = [width - left - right, height - bottom];
  pen.drawImage(heatImage.image, left, 0, w, h);
  pen.font = FONT;
  pen.fillStyle = colours.muted;
  pen.textAlign = "right";
  const label = (row, text) => pen.fillText(text, left - 6, ((row + 0.5) / rows) * h + 4);
  const short = visible(curves.layers[0]);
  label(0, short.length > 6 ? `${short.slice(0, 4)}.` : short);
  for (const row of ticks(1, rows - 1, h / 13)) if ((row / rows) * h > 11) label(row, visible(curves.layers[row]).slice(0, 6));
  pen.textAlign = "center";
  for (const at of ticks(0, columns - 1, w / 70)) pen.fillText(String(curves.positions[at]), left + ((at + 0.5) / columns) * w, height - 5);
  const at = curveIndex(unitPosition(selection.at));
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 1.5;
  const wide = Math.max(3, w / columns);
  pen.strokeRect(left + ((at + 0.5) / columns) * w - wide / 2, 0.75, wide, h - 1.5);
}

let heatImage = null;
function paintHeat(columns, rows) {
  const image = document.createElement("canvas");
  [image.width, image.height] = [columns, rows];
  const pen = image.getContext("2d");
  let most = 1;
  const excess = (i, layer) => {
    const [error, noise] = [curves.error[i][layer], curves.noise[layer]];
    return error === null || !noise ? null : Math.max(0, Math.log10(Math.max(error, 1e-300) / noise));
  };
  for (let i = 0; i < columns; i += 1) for (let l = 0; l < rows; l += 1) most = Math.max(most, excess(i, l) ?? 0);
  pen.fillStyle = colours.soft;
  pen.fillRect(0, 0, columns, rows);
  for (let i = 0; i < columns; i += 1) {
    for (let l = 0; l < rows; l += 1) {
      const found = excess(i, l);
      if (!found) continue;
      pen.fillStyle = `rgba(${colours.heat}, ${(0.25 + 0.75 * (found / most)).toFixed(3)})`;
      pen.fillRect(i, l, 1, 1);
    }
  }
  return image;
}

function startCurves() {
  if (!curves) return;
  const move = (to) => {
    layerChosen = true;
    layerAt = Math.max(0, Math.min(curves.layers.length - 1, to));
    drawCurves();
  };
  for (const host of document.querySelectorAll(".chart")) {
    host.setAttribute("aria-valuemax", String(curves.layers.length - 1));
    host.addEventListener("pointermove", (event) => layerFinder && move(layerFinder(event.clientX - host.getBoundingClientRect().left)));
    host.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: layerAt - 1, ArrowDown: layerAt - 1, ArrowRight: layerAt + 1, ArrowUp: layerAt + 1, Home: 0, End: curves.layers.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      move(to);
    });
  }
  document.getElementById("curve-table").addEventListener("toggle", drawCurves);
  document.getElementById("heat").addEventListener("click", (event) => {
    const box = event.target.getBoundingClientRect();
    const share = (event.clientX - box.left - GUTTER.left) / (box.width - GUTTER.left - GUTTER.right);
    const at = Math.max(0, Math.min(curves.positions.length - 1, Math.floor(share * curves.positions.length)));
    select(nearestUnit(curves.positions[at]), "heat");
  });
  new ResizeObserver(drawCurves).observe(document.getElementById("curve-error"));
  onFrame(drawCurves);
}
