// What `state.json` answers, as elements.

import { keyed, make, setChildren, setText } from "./dom.js";
import { bytes, count, duration, time } from "./format.js";

const INSTALLABLE = new Set(["MISSING", "OUTDATED"]);
// Server processes whose operations are shown at once.
const OPEN = 3;
const MOST_ERRORS = 50;

// Triggers of each database; `install(alias)` is called by its button, where the viewer may.
export function showTriggers(root, triggers, mayInstall, install) {
  const create = ([alias]) => ofDatabase(alias, mayInstall ? [installButton(alias, install)] : []);
  keyed(root, Object.entries(triggers), ([alias]) => alias, create, (section, [, part]) => {
    const body = section.querySelector(".pm-body");
    const button = section.querySelector("button");
    const wanting = part.error ? [] : part.tables.filter(({ status }) => INSTALLABLE.has(status));
    if (button) {
      button.setAttribute("aria-disabled", String(!wanting.length));
      setText(button, wanting.length ? `Install what is missing (${wanting.length})` : "Nothing to install");
    }
    if (part.error) return setChildren(body, failure(part));
    const uncapturable = part.errors.map((error) => failure({ error }));
    setChildren(body, ...uncapturable, triggerList(part), ...advice(part, wanting, mayInstall));
  });
}

function installButton(alias, install) {
  const button = make("button", { type: "button", class: "pm-button pm-primary", "data-database": alias });
  button.addEventListener("click", () => button.getAttribute("aria-disabled") === "true" || install(alias));
  return button;
}

function triggerList({ tables }) {
  if (!tables.length) return make("p", { class: "pm-hint" }, "No model is watched in this database.");
  return make("ul", { class: "pm-list" }, ...tables.map(({ label, table, status, detail }) =>
    make(
      "li",
      { "data-label": label, "data-status": status },
      make("span", { class: "pm-badge", "data-status": status }, status),
      make("span", {}, make("b", {}, label), ` on ${table}`),
      detail ? make("span", { class: "pm-hint" }, detail) : null,
    )));
}

function* advice({ tables }, wanting, mayInstall) {
  if (wanting.length && !mayInstall) {
    const hint = "A superuser can install them here; manage.py install_triggers does it as well.";
    yield make("p", { class: "pm-hint" }, hint);
  }
  if (tables.some(({ status }) => status === "ORPHANED")) {
    yield make("p", { class: "pm-hint" }, "What no watch wants is removed by manage.py install_triggers.");
  }
}

// Listener and journal of each database.
export function showJournals(root, journals) {
  keyed(root, Object.entries(journals), ([alias]) => alias, ([alias]) => ofDatabase(alias), (section, [, part]) => {
    setChildren(section.querySelector(".pm-body"), part.error ? failure(part) : journal(part));
  });
}

function journal(part) {
  const pairs = [
    ["Leader", leader(part)],
    ["Standbys", part.replica ? "" : standbys(part)],
    ["Lag", lag(part), "lag"],
    ["Relayed", part.relayed_at ? `up to now, stored at ${time(part.relayed_at)}` : "no position stored yet"],
    ["Size", `${bytes(part.bytes)}${part.oldest ? `, the oldest row of ${time(part.oldest)}` : ", empty"}`],
    ...part.slots.map((slot) => [`Slot ${slot.number}`, slotText(slot, part)]),
    ["Retention", `${duration(part.retention)} at least; a slot was emptied last at ${time(part.rotated_at)}`],
    ["Open writers", writers(part)],
  ];
  if (part.relayed_at && part.unrelayed) pairs[3][1] = `stored at ${time(part.relayed_at)}`;
  return make("dl", { class: "pm-pairs" }, ...pairs.filter(([, text]) => text).flatMap(([name, text, what]) =>
    [make("dt", {}, name), make("dd", { "data-what": what ?? name.toLowerCase() }, text)]));
}

function leader({ replica, leader, leased, stuck, epoch }) {
  if (replica) return "this is a replica: who leads is known to its primary";
  if (leader) {
    const place = leader.host ? ` from ${leader.host}` : "";
    const state = leader.awake ? "awake" : "asleep";
    const warning = stuck ? "; STUCK? it has stored nothing for too long" : "";
    return `backend ${leader.pid}${place}, ${state}, since ${time(leader.since)}, epoch ${epoch}${warning}`;
  }
  if (leased) return `one leads through a pooler, or has just gone, epoch ${epoch}`;
  return "NOBODY leads: changes wait in the journal until manage.py run_listener runs";
}

function standbys({ standbys }) {
  if (!standbys.length) return "none to be seen";
  const from = (host) => (host ? ` from ${host}` : "");
  const each = standbys.map(({ pid, host, since }) => `backend ${pid}${from(host)}, since ${time(since)}`);
  return `${standbys.length}: ${each.join("; ")}`;
}

function lag({ unrelayed, lag, counted_at_most: most }) {
  if (!unrelayed) return "none";
  const more = unrelayed >= most ? " or more" : "";
  return `${count(unrelayed, "row")}${more} not relayed, the oldest for ${duration(lag)}`;
}

function slotText({ bytes: size, rows, oldest, current }, { counted_at_most: most }) {
  const words = rows ? [bytes(size), `${count(rows, "row")}${rows >= most ? " or more" : ""}`] : ["empty"];
  if (oldest) words.push(`since ${time(oldest)}`);
  if (current) words.push("written now");
  return words.join(", ");
}

function writers({ replica, writers }) {
  if (replica) return "";
  if (!writers.count) return "none";
  return `${count(writers.count, "transaction")} of this server, the oldest since ${time(writers.since)}`;
}

// Hubs of all processes that answered, with their operations.
export function showHubs(root, note, part) {
  if (part.error) {
    root.replaceChildren(failure(part));
    setText(note, "");
    return;
  }
  const { answers, waited } = part;
  const sockets = answers.reduce((sum, answer) => sum + (answer.sockets ?? 0), 0);
  const processes = count(answers.length, "server process", "server processes");
  setText(note, answers.length
    ? `${processes} with ${count(sockets, "socket")} answered within ${waited} s.`
    : `No server process answered within ${waited} s; one without a socket has no hub.`);
  const create = () => make("details", { class: "pm-details pm-hub", open: answers.length <= OPEN },
    make("summary"), make("div", { class: "pm-body" }));
  keyed(root, answers, ({ process }) => `${process.host}:${process.pid}`, create, (details, answer) => {
    // What it has said last stays, while it answers somebody else.
    if (answer.busy) return details.firstChild.textContent || setText(details.firstChild, busy(answer));
    setText(details.firstChild, summary(answer));
    setChildren(details.lastChild, ...hub(answer));
  });
}

function busy({ process }) {
  return `${process.host}:${process.pid}: answers somebody else just now`;
}

function summary({ process, sockets, operations_total: total, pending }) {
  const waits = pending ? `, ${count(pending, "change")} waiting for execution` : "";
  return `${process.host}:${process.pid}: ${count(sockets, "socket")}, ${count(total, "operation")}${waits}`;
}

function* hub({ process, feeds, operations, operations_total: total }) {
  yield make("p", { class: "pm-hint" }, `Since ${time(process.since)}. `, ...feeds.map(feedText));
  if (operations.length) yield make("ol", { class: "pm-list" }, ...operations.map(operation));
  if (total > operations.length) {
    yield make("p", { class: "pm-hint" }, `And ${(total - operations.length).toLocaleString("en")} more.`);
  }
}

function feedText({ database, epoch, silent_for: silent, models }) {
  // Heartbeats come every few seconds at most: tenths would only flicker.
  const heard = silent < 10 ? "heard of within 10 s" : `silent for ${duration(Math.floor(silent))}`;
  return `Database ${database}: epoch ${epoch}, ${heard}, ${models.length ? models.join(", ") : "no models"}. `;
}

function operation({ number, user, name, field, topics, audience, since, behind }) {
  return make(
    "li",
    { "data-user": user, "data-field": field },
    make("span", { class: "pm-badge", "data-behind": String(behind) }, behind ? "BEHIND" : `no. ${number}`),
    make("span", {}, make("b", {}, field), name ? ` (${name})` : null, ` of ${user || "somebody anonymous"}`),
    make("span", { class: "pm-hint" }, `${topics.join(", ")}; shared with ${audience}; since ${time(since)}`),
  );
}

// The last errors of all processes, newest first.
export function showErrors(list, note, part) {
  if (part.error) return setText(note, part.error);
  // What was said last stays, while one answers somebody else.
  if (part.answers.some(({ busy }) => busy)) return;
  const errors = part.answers.flatMap(({ process, errors }) => errors.map((error) => ({ ...error, process })));
  errors.sort((a, b) => b.at - a.at);
  const newest = `Of all processes that answered, the latest ${MOST_ERRORS} at most.`;
  setText(note, errors.length ? newest : "None that a process remembers.");
  setChildren(list, ...errors.slice(0, MOST_ERRORS).map(({ at, level, logger, message, process }) =>
    make(
      "li",
      {},
      make("span", { class: "pm-badge", "data-level": level }, level),
      make("span", {}, `${time(at)} ${logger}`, make("span", { class: "pm-hint" }, ` ${process.host}:${process.pid}`)),
      make("span", { class: "pm-message" }, message ?? "(its message is shown to superusers)"),
    )));
}

function ofDatabase(alias, more = []) {
  return make("section", { class: "pm-database", "aria-label": `Database ${alias}` },
    make("h3", {}, `Database ${alias}`), make("div", { class: "pm-body" }), ...more);
}

function failure({ error }) {
  return make("p", { class: "pm-notice" }, error);
}
