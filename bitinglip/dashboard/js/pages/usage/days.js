/** Days as usage has them: in UTC, one after the other. */

const DAY = 86_400; // seconds

/** The day so many days ago. @param {number} days */
export function dayBefore(days) {
  return new Date(Date.now() - days * DAY * 1000).toISOString().slice(0, 10);
}

/**
 * Columns for a chart: the times of the last days, then a value a day for each field.
 * Days without a row are zero.
 * @param {any[]} rows @param {string[]} fields @param {number} days
 */
export function byDay(rows, fields, days) {
  const sums = new Map();
  for (const row of rows) {
    const before = sums.get(row.day) ?? {};
    sums.set(row.day, Object.fromEntries(fields.map((field) => [field, (before[field] ?? 0) + (row[field] ?? 0)])));
  }
  const names = Array.from({ length: days }, (_, index) => dayBefore(days - 1 - index));
  const times = names.map((name) => Date.parse(`${name}T12:00:00Z`) / 1000);
  return [times, ...fields.map((field) => names.map((name) => sums.get(name)?.[field] ?? 0))];
}
