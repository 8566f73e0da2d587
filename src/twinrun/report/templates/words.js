/* Text that cannot harm, numbers in few digits, and the one way in which elements are made. */
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const code = (found) => `⟨${found.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
const harmless = (text) => text.replace(UNSEEN, code);
const visible = (text) => harmless(text).replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

function node(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e4) return size < 1000 ? String(Number(value.toPrecision(3))) : value.toFixed(0);
  return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
}

function percent(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.0005) return "<0.1 %";
  return value > 0.9995 ? "100 %" : `${(100 * value).toFixed(1)} %`;
}

function duration(value) {
  if (value === null) return "–";
  return value < 0.9995 ? `${Number((value * 1e3).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
}
