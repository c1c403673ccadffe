// Asks each second for the parts of the page that have changed, and puts them in their places.
const live = document.getElementById("live"), offline = document.getElementById("offline");
const newer = document.getElementById("newer");
const held = new Map();  // parts that are being read, with what they are to become
let revision = Number(live.dataset.revision), failures = 0, timer = 0, pointer = [0, 0];
document.addEventListener("pointermove", (event) => { pointer = [event.clientX, event.clientY]; });

function isRead(place) {
  const selected = getSelection();
  return "hold" in place.dataset && (place.matches(":hover") || place.querySelector("details[open]") !== null
    || place.contains(document.activeElement) || (!selected.isCollapsed && place.contains(selected.anchorNode)));
}

function put(place, html) {
  const open = [...place.querySelectorAll("details")].map((each) => each.open);
  place.innerHTML = html;  // escaped by the server; the content policy lets no script in it run
  if (!("hold" in place.dataset)) {
    place.querySelectorAll("details").forEach((each, number) => { each.open = open[number] ?? false; });
  }
}

function show(name, html) {
  if (name === "title") { document.title = html; return; }
  const place = live.querySelector(`[data-part="${CSS.escape(name)}"]`);
  if (place === null) return;
  if (isRead(place)) { held.set(place, html); return; }
  held.delete(place);
  put(place, html);
}

function release(forced) {
  for (const [place, html] of held) {
    if (forced || !isRead(place)) { held.delete(place); put(place, html); }
  }
  if (newer) newer.hidden = held.size === 0;
}

function say(text) { offline.textContent = text; offline.hidden = text === ""; }

async function poll() {
  clearTimeout(timer);
  try {
    const answer = await fetch(`parts?since=${revision}`, { cache: "no-store" });
    if (answer.status === 404) return say("omr watch was started anew: open the address that it prints.");
    if (!answer.ok) throw new Error(answer.statusText);
    const found = await answer.json();
    for (const [name, html] of Object.entries(found.parts)) show(name, html);
    revision = found.revision;
    failures = 0;
  } catch (error) {
    failures += 1;
  }
  say(failures > 1 ? "No connection to omr watch: what is shown is old. Trying again." : "");
  release(false);
  if (!tip.hidden) showTip(document.elementFromPoint(...pointer), ...pointer);
  timer = setTimeout(poll, document.hidden ? 10000 : 1000 * Math.min(2 ** failures, 10));
}

if (newer) newer.addEventListener("click", () => release(true));
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
timer = setTimeout(poll, 1000);
