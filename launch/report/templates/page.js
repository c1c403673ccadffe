// One idea: each chart carries its texts per step (data-hover); the nearest step's are shown beside the pointer.
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const rows = JSON.parse(svg.dataset.hover);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const hide = () => { tip.hidden = true; cursor.remove(); };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const row = rows.reduce((best, next) => Math.abs(next[0] - at) < Math.abs(best[0] - at) ? next : best);
    cursor.setAttribute("d", "M" + row[0] + " " + svg.dataset.top + "V" + svg.dataset.bottom);
    svg.append(cursor);
    tip.textContent = row.slice(1).join("\n");
    tip.hidden = false;
    const left = event.clientX + 16;
    const fits = left + tip.offsetWidth < innerWidth;
    tip.style.left = Math.max(4, fits ? left : event.clientX - 16 - tip.offsetWidth) + "px";
    tip.style.top = Math.max(4, event.clientY - 16 - tip.offsetHeight) + "px";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
