// Why each operation did or did not get a change: what `explain.json` answers, as elements.

import { make } from "./dom.js";
import { count, preciseTime } from "./format.js";
import { RequestFailed, fetchJson } from "./poller.js";

const MINUTES = 10;
const MOST_MINUTES = 1_440;
const MARKS = new Map([[true, ["✓", "yes"]], [false, ["✗", "no"]], [null, ["?", "not known"]]]);

// Fills `element` with what became of a change; one whose key is not known cannot be asked for.
export async function explain(url, change, element) {
  if (change.pk === null) {
    element.replaceChildren(make("p", {}, "This change has no key, so there is no row to explain."));
    return;
  }
  element.replaceChildren(make("p", { class: "pm-hint" }, "Asking the journal and every server process…"));
  const query = new URLSearchParams({ model: change.label, pk: change.pk, minutes: minutesSince(change.at) });
  try {
    const answer = await fetchJson(new URL(`?${query}`, url));
    element.replaceChildren(...shown(answer, change.journalId), again(url, change, element));
  } catch (error) {
    if (!(error instanceof RequestFailed)) throw error;
    element.replaceChildren(make("p", { class: "pm-notice" }, error.message), again(url, change, element));
  }
}

function minutesSince(at) {
  const minutes = Math.ceil((Date.now() - Date.parse(at)) / 60_000) + 1;
  return Math.min(Math.max(minutes, MINUTES), MOST_MINUTES);
}

function again(url, change, element) {
  const button = make("button", { type: "button", class: "pm-button" }, "Ask again");
  button.addEventListener("click", async () => {
    await explain(url, change, element);
    element.querySelector("button")?.focus();
  });
  return button;
}

function* shown({ notes, changes }, journalId) {
  for (const note of notes) yield make("p", { class: "pm-hint" }, note);
  const asked = changes.filter(({ id }) => String(id) === journalId);
  const others = changes.filter(({ id }) => String(id) !== journalId).reverse();
  for (const change of asked) yield explained(change);
  if (!asked.length) yield make("p", { class: "pm-notice" }, "The journal does not have this change any more.");
  if (others.length) {
    yield make(
      "details",
      { class: "pm-details" },
      make("summary", {}, `${count(others.length, "other change")} of this row`),
      ...others.map(explained),
    );
  }
}

function explained({ xid, kind, at, stages, hubs }) {
  return make(
    "div",
    { class: "pm-explained" },
    make("p", {}, make("b", {}, kind), ` at ${preciseTime(at)}, transaction ${xid}`),
    make("ul", { class: "pm-stages" }, ...stages.map(stage)),
    ...hubs.map(hub),
  );
}

function stage({ ok, text }) {
  const [mark, word] = MARKS.get(ok) ?? MARKS.get(null);
  const sign = make("span", { class: "pm-mark", role: "img", "aria-label": word }, mark);
  return make("li", { "data-ok": String(ok) }, sign, text);
}

function hub({ process, text, operations }) {
  return make(
    "div",
    { class: "pm-of-hub" },
    make("p", {}, make("b", {}, `Process ${process.host}:${process.pid}`), ` ${text}`),
    make("ul", { class: "pm-list" }, ...operations.map(operation)),
  );
}

function operation({ number, user, field, outcome, why }) {
  return make(
    "li",
    { class: "pm-outcome", "data-outcome": outcome },
    make("span", { class: "pm-badge" }, outcome),
    make("span", {}, make("b", {}, field), ` of ${user || "somebody anonymous"}, operation ${number}`),
    make("span", { class: "pm-hint" }, why),
  );
}
