// Numbers and times for people.

const UNITS = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
const SIZES = ["bytes", "kB", "MB", "GB", "TB"];

// Seconds, in the largest unit of which there is one at least.
export function duration(seconds) {
  const [unit, size] = UNITS.find(([, size]) => seconds >= size) ?? UNITS.at(-1);
  return `${Number((seconds / size).toFixed(1))} ${unit}`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  const shown = Math.max(0, value);
  return shown < 10_000 ? `${shown < 10 ? shown.toFixed(1) : shown.toFixed(0)} ms` : duration(shown / 1000);
}

export function bytes(size) {
  const power = size < 1 ? 0 : Math.min(Math.floor(Math.log10(size) / 3), SIZES.length - 1);
  const value = size / 1000 ** power;
  return `${power && value < 10 ? value.toFixed(1) : value.toFixed(0)} ${SIZES[power]}`;
}

export function count(number, one, several = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : several}`;
}

// A moment, as text of ISO 8601 or in seconds since 1970; with the day where it is not today.
export function time(moment) {
  if (moment === null || moment === undefined) return "unknown";
  const date = new Date(typeof moment === "number" ? moment * 1000 : moment);
  const clock = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? clock : `${date.toLocaleDateString("sv-SE")} ${clock}`;
}

export function preciseTime(moment) {
  const date = new Date(moment);
  return `${date.toLocaleTimeString("en-GB")}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}
