// The changes as they come, newest first, with filters.
//
// It stands still while it is paused, and while somebody is in it with the pointer or the keyboard: nothing moves away
// from under a click. What comes meanwhile is kept, and shown afterwards.

import { make, setText, soon } from "./dom.js";
import { count, milliseconds, preciseTime } from "./format.js";

// Changes that are kept for the filters, and rows that are shown of them.
const KEPT = 1_000;
const ROWS = 200;
const DRAW_AFTER_MS = 150;
const KEYS = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };

export class Tail {
  #parts;
  #explain;
  #changes = [];
  #last = 0;
  #shown = 0;
  #paused = false;
  #pointed = false;
  #offered;
  #drawSoon = soon(() => this.#draw(), DRAW_AFTER_MS);

  // `parts` has the elements list, note, pause, clear, model, kinds and key; `explain(change, element)` fills an
  // element when a change is opened.
  constructor(parts, explain) {
    this.#parts = parts;
    this.#explain = explain;
    const { list, pause, clear, model, kinds, key } = parts;
    this.#offered = new Set([...model.options].map(({ value }) => value));
    pause.addEventListener("click", () => this.#setPaused(!this.#paused));
    clear.addEventListener("click", () => this.#clear());
    for (const filter of [model, ...kinds]) filter.addEventListener("change", () => this.#drawAnew());
    key.addEventListener("input", () => this.#drawAnew());
    list.addEventListener("keydown", (event) => this.#move(event));
    list.addEventListener("focusin", () => this.#tell());
    list.addEventListener("focusout", () => this.#drawSoon());
    list.addEventListener("pointerenter", ({ pointerType }) => this.#point(pointerType === "mouse"));
    list.addEventListener("pointerleave", () => this.#point(false));
  }

  add(change) {
    this.#last += 1;
    this.#changes.push({ ...change, number: this.#last });
    if (this.#changes.length > KEPT) this.#changes.shift();
    this.#offer(change.label);
    this.#drawSoon();
  }

  get #held() {
    return this.#paused || this.#pointed || this.#parts.list.contains(document.activeElement);
  }

  #draw() {
    if (!this.#held) {
      const fresh = this.#changes.filter((change) => change.number > this.#shown && this.#matches(change));
      this.#shown = this.#last;
      this.#parts.list.prepend(...this.#rows(fresh));
      this.#trim();
    }
    this.#tell();
  }

  #drawAnew() {
    const matching = this.#changes.filter((change) => change.number <= this.#shown && this.#matches(change));
    this.#parts.list.replaceChildren(...this.#rows(matching));
    this.#trim();
    this.#tell();
  }

  #rows(changes) {
    return changes.slice(-ROWS).reverse().map((change) => this.#row(change));
  }

  // What somebody has opened stays.
  #trim() {
    const { list } = this.#parts;
    for (const row of [...list.children].slice(ROWS)) {
      if (row.firstChild.getAttribute("aria-expanded") !== "true") row.remove();
    }
    // One of them is reached by the Tab key, the others by the arrows.
    [...list.children].forEach((row, place) => (row.firstChild.tabIndex = place ? -1 : 0));
  }

  #row(change) {
    const id = `why-${change.number}`;
    const why = make("div", { class: "pm-why", id, hidden: true });
    const button = make(
      "button",
      { type: "button", class: "pm-change", "aria-expanded": "false", "aria-controls": id },
      make("span", { class: "pm-time" }, preciseTime(change.at)),
      make("span", { class: "pm-kind", "data-kind": change.kind }, change.kind),
      make("span", { class: "pm-label" }, change.label),
      make("span", { class: "pm-key" }, change.pk ?? "all rows"),
      make("span", { class: "pm-changed" }, change.changed.join(", ")),
      make("span", { class: "pm-delay" }, milliseconds(change.delay)),
    );
    button.addEventListener("click", () => {
      const opens = why.hidden;
      why.hidden = !opens;
      button.setAttribute("aria-expanded", String(opens));
      if (opens) this.#explain(change, why);
    });
    const { kind, label, pk } = change;
    const data = { "data-kind": kind, "data-label": label, "data-pk": pk ?? "", "data-xid": change.xid };
    return make("li", data, button, why);
  }

  #matches({ label, kind, pk }) {
    const { model, kinds, key } = this.#parts;
    return (
      (model.value === "" || model.value === label) &&
      kinds.some((box) => box.checked && box.value === kind) &&
      (key.value === "" || (pk ?? "").toLowerCase().includes(key.value.toLowerCase()))
    );
  }

  #tell() {
    const { list, note } = this.#parts;
    const waiting = this.#last - this.#shown;
    const rows = count(list.children.length, "change");
    if (this.#paused) setText(note, `Paused; ${count(waiting, "change")} came meanwhile.`);
    else if (this.#held) setText(note, `Held while you are in the list; ${count(waiting, "change")} came meanwhile.`);
    else if (this.#last === 0) setText(note, "Nothing has come yet.");
    else setText(note, `Showing ${rows} of the last ${this.#changes.length.toLocaleString("en")}.`);
  }

  #setPaused(paused) {
    this.#paused = paused;
    this.#parts.pause.setAttribute("aria-pressed", String(paused));
    this.#draw();
  }

  #point(pointed) {
    this.#pointed = pointed;
    this.#drawSoon();
  }

  #clear() {
    this.#changes = [];
    this.#shown = this.#last;
    this.#drawAnew();
  }

  #move(event) {
    const buttons = [...this.#parts.list.children].map((row) => row.firstChild);
    const place = buttons.indexOf(event.target);
    const step = KEYS[event.key];
    if (place < 0 || step === undefined) return;
    event.preventDefault();
    const next = buttons[Math.min(Math.max(place + step, 0), buttons.length - 1)];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  // Of a model that came to be watched after the page was loaded, too.
  #offer(label) {
    if (this.#offered.has(label)) return;
    this.#offered.add(label);
    this.#parts.model.append(make("option", { value: label }, label));
  }
}
