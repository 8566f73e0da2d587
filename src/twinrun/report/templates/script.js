"use strict";
(() => {
  const data = JSON.parse(document.getElementById("tips").textContent);
  const tip = document.getElementById("tip");
  const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  let shown = null;

  function node(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function side(name, rows, token) {
    const box = node("div", "side");
    box.append(node("h4", "", name));
    for (const [text, probability] of rows) {
      const line = node("div", text === token ? "alt same" : "alt");
      const bar = node("i");
      bar.style.width = `${(100 * probability).toFixed(1)}%`;
      const rounded = `${(100 * probability).toFixed(1)} %`;
      const percent = probability < 0.0005 ? "<0.1 %" : probability > 0.9995 ? "100 %" : rounded;
      line.append(bar, node("code", "", visible(text)), node("span", "", percent));
      box.append(line);
    }
    return box;
  }

  function show(target) {
    const found = data[Number(target.parentElement.dataset.text)][Number(target.dataset.i)];
    const head = node("p", "head");
    head.append(node("code", "", visible(found.token)), node("span", "", found.where || `position ${found.position}`));
    const chosen = target.classList.contains("chosen");
    const word = "label" in found ? "kept" : "chosen";
    if (found.kl !== null) {
      head.append(node("b", chosen ? "chosen" : "", `KL ${found.kl.toPrecision(3)} nats${chosen ? `, ${word}` : ""}`));
    }
    const sides = node("div", "sides");
    for (const name of ["expert", "amateur", "label"]) {
      if (found[name] && found[name].length) sides.append(side(name, found[name], found.token));
    }
    tip.replaceChildren(head, sides);
    tip.hidden = false;
    if (shown && shown !== target) shown.removeAttribute("aria-describedby");
    target.setAttribute("aria-describedby", "tip");
    shown = target;
    place(target.getBoundingClientRect());
  }

  function place(spot) {
    const size = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(spot.left, document.documentElement.clientWidth - size.width - 8));
    const below = spot.bottom + 6;
    const fits = below + size.height < document.documentElement.clientHeight - 4;
    tip.style.left = `${left}px`;
    tip.style.top = `${fits ? below : Math.max(4, spot.top - size.height - 6)}px`;
  }

  function hide() {
    tip.hidden = true;
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
  }

  function walk(event) {
    const from = event.target.closest(".tokens .tok");
    if (!from) return;
    const all = [...from.parentElement.children];
    const chosen = all.filter((token) => token.classList.contains("chosen"));
    const at = all.indexOf(from);
    const next = {
      ArrowRight: () => all[at + 1],
      ArrowLeft: () => all[at - 1],
      ArrowDown: () => chosen.find((token) => all.indexOf(token) > at),
      ArrowUp: () => chosen.findLast((token) => all.indexOf(token) < at),
      Home: () => all[0],
      End: () => all[all.length - 1],
    }[event.key];
    if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const to = next();
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  for (const group of document.querySelectorAll(".tokens")) {
    group.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".tok");
      if (token) show(token);
    });
    group.addEventListener("pointerleave", () => {
      const focused = group.contains(document.activeElement) ? document.activeElement : null;
      if (focused && focused.matches(":focus-visible")) show(focused);
      else hide();
    });
    group.addEventListener("focusin", (event) => show(event.target));
    group.addEventListener("focusout", hide);
    group.addEventListener("keydown", walk);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  addEventListener("scroll", () => shown && place(shown.getBoundingClientRect()), { passive: true });
  document.documentElement.dataset.ready = "yes";
})();
