/** Numbers, times and sizes as people read them. */

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** A size in powers of a thousand, as the server's own texts have it. @param {number | null | undefined} bytes */
export function bytes(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** A number with few digits; large ones in thousands. @param {number | null | undefined} value */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(1)}G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  if (Number.isInteger(value)) return String(value);
  return size >= 100 ? value.toFixed(0) : size >= 1 ? value.toFixed(1) : value.toFixed(2);
}

/** A whole number with its groups of digits. @param {number} value */
export const whole = (value) => Math.round(value).toLocaleString("en");

/** @param {number | null | undefined} seconds */
export function seconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const size = Math.round(seconds);
  if (size < 60) return `${size} s`;
  if (size < 3600) return `${Math.floor(size / 60)} min ${size % 60} s`;
  if (size < 86_400) return `${Math.floor(size / 3600)} h ${Math.floor((size % 3600) / 60)} min`;
  return `${Math.floor(size / 86_400)} d ${Math.floor((size % 86_400) / 3600)} h`;
}

/** How long ago or ahead a moment is. @param {string | null} moment in ISO form */
export function relative(moment) {
  if (!moment) return "–";
  const away = (Date.parse(moment) - Date.now()) / 1000;
  const size = Math.abs(away);
  if (size < 5) return "now";
  const text = size < 60 ? `${Math.round(size)} s` : size < 3600 ? `${Math.round(size / 60)} min`
    : size < 172_800 ? `${Math.round(size / 3600)} h` : `${Math.round(size / 86_400)} d`;
  return away < 0 ? `${text} ago` : `in ${text}`;
}

/** A moment in full, in the reader's own zone. @param {string | null} moment */
export function moment(moment) {
  if (!moment) return "–";
  return new Date(moment).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** @param {number | null | undefined} part from 0 to 1 */
export const percent = (part) =>
  part === null || part === undefined ? "–" : `${Math.round(part * 100)}%`;
