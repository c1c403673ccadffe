// One idea: each chart carries its texts per step (data-hover); the nearest step's are shown beside the pointer.
const tip = document.getElementById("tip");
const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
cursor.setAttribute("class", "cursor");
function hideTip() { tip.hidden = true; cursor.remove(); }
function showTip(target, x, y) {
  const svg = target instanceof Element && target.closest("svg[data-hover]");
  if (!svg) return hideTip();
  const rows = svg.hoverRows ??= JSON.parse(svg.dataset.hover);
  const box = svg.getBoundingClientRect();
  const at = (x - box.left) * svg.viewBox.baseVal.width / box.width;
  const row = rows.reduce((best, next) => Math.abs(next[0] - at) < Math.abs(best[0] - at) ? next : best);
  cursor.setAttribute("d", "M" + row[0] + " " + svg.dataset.top + "V" + svg.dataset.bottom);
  svg.append(cursor);
  tip.textContent = row.slice(1).join("\n");
  tip.hidden = false;
  const left = x + 16;
  const fits = left + tip.offsetWidth < innerWidth;
  tip.style.left = Math.max(4, fits ? left : x - 16 - tip.offsetWidth) + "px";
  tip.style.top = Math.max(4, y - 16 - tip.offsetHeight) + "px";
}
for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => showTip(event.target, event.clientX, event.clientY));
}
document.addEventListener("pointerleave", hideTip);
