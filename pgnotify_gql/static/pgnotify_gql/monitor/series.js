// What has arrived in the last two minutes: changes per second by model, and how long they took.

export const SECONDS = 120;
// The trailing window of which a legend and the delays are told.
export const WINDOW = 5;
// A plot with more lines cannot be read; models beyond are one line together.
const LINES = 6;
const OTHERS = "other models";
// Delays that are kept of one second: enough for a 99th percentile.
const SAMPLES = 1_000;

export class Series {
  #now;
  #first;
  #counts = new Map();
  #delays = {};
  // Of seconds that are over, which do not change any more.
  #windows = new Map();

  // `now()` returns milliseconds.
  constructor(now = () => Date.now()) {
    this.#now = now;
    this.#first = this.#second();
  }

  add(label, delay) {
    const second = this.#second();
    const counts = this.#counts.get(label) ?? new Map();
    this.#counts.set(label, counts);
    counts.set(second, (counts.get(second) ?? 0) + 1);
    const delays = (this.#delays[second] ??= []);
    if (delays.length < SAMPLES) delays.push(delay);
    else delays[Math.floor(Math.random() * SAMPLES)] = delay;
  }

  // Returns [{ name, values, recent }], the busiest first: changes in each second, the one that is not over left out.
  rates() {
    const end = this.#second();
    const all = [...this.#counts].map(([name, counts]) => this.#rate(name, counts, end));
    all.sort((a, b) => b.total - a.total || a.name.localeCompare(b.name));
    if (all.length <= LINES) return all;
    return [...all.slice(0, LINES - 1), all.slice(LINES - 1).reduce(together)];
  }

  #rate(name, counts, end) {
    const values = this.#seconds(end).map((second) => (second < this.#first ? null : (counts.get(second) ?? 0)));
    const recent = values.slice(-WINDOW).reduce((sum, value) => sum + (value ?? 0), 0) / WINDOW;
    return { name, values, recent, total: values.reduce((sum, value) => sum + (value ?? 0), 0) };
  }

  // Returns the delays of the changes of the window before each second, null where there were none.
  delays() {
    const end = this.#second();
    const windows = this.#seconds(end).map((second) => this.#window(second));
    return ["median", "p99"].map((name, number) => {
      const values = windows.map((quantiles) => quantiles[number]);
      return { name, values, recent: values.at(-1) };
    });
  }

  #window(second) {
    if (!this.#windows.has(second)) {
      const delays = [];
      for (let each = second - WINDOW + 1; each <= second; each++) delays.push(...(this.#delays[each] ?? []));
      delays.sort((a, b) => a - b);
      this.#windows.set(second, [quantile(delays, 0.5), quantile(delays, 0.99)]);
    }
    return this.#windows.get(second);
  }

  // Forgets what is too old to be shown.
  prune() {
    const oldest = this.#second() - SECONDS - WINDOW;
    for (const counts of this.#counts.values()) {
      for (const second of counts.keys()) if (second < oldest) counts.delete(second);
    }
    for (const second of Object.keys(this.#delays)) if (second < oldest) delete this.#delays[second];
    for (const second of this.#windows.keys()) if (second < oldest) this.#windows.delete(second);
  }

  #second() {
    return Math.floor(this.#now() / 1000);
  }

  #seconds(end) {
    return Array.from({ length: SECONDS }, (_, place) => end - SECONDS + place);
  }
}

function quantile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] : null;
}

function together(one, other) {
  return {
    name: OTHERS,
    values: one.values.map((value, place) => (value === null ? null : value + other.values[place])),
    recent: one.recent + other.recent,
    total: one.total + other.total,
  };
}
