/** What was used, by day, key and model. */
import { api } from "../api.js";
import { number, whole } from "../format.js";
import { html, useState } from "../html.js";
import { useLoaded } from "../load.js";
import { may } from "../session.js";
import { Chart } from "../ui/chart.js";
import { Button, Card, Empty, Failure, Loading, PageHead, Segments } from "../ui/parts.js";
import { byDay, dayBefore } from "./usage/days.js";

const SPANS = [["7", "7 days"], ["30", "30 days"], ["90", "90 days"]];
const UNITS = [
  ["total_tokens", "Tokens"], ["requests", "Requests"], ["megapixels", "Megapixels"],
  ["audio_seconds", "Audio s"], ["gpu_seconds", "GPU s"],
];

export default function Usage() {
  const [days, setDays] = useState("30");
  const [unit, setUnit] = useState("total_tokens");
  const from = dayBefore(Number(days) - 1);
  const ask = (groups) => (signal) => api.get("api/v1/usage", { group_by: groups, from, limit: 500 }, signal);
  const daily = useLoaded(ask("day"), [days]);
  const models = useLoaded(ask("model"), [days]);
  const keys = useLoaded(ask("key"), [days]);
  const title = UNITS.find(([name]) => name === unit)[1];
  return html`
    <${PageHead} title="Usage"><span class="quiet small">${may("admin") ? "of all keys" : "of your key"}</span>
      <${Segments} label="Span" options=${SPANS} value=${days} onChange=${setDays} />
      <${Button} icon="pull" onClick=${() => save(from)}>CSV<//><//>
    <${Card} title=${`${title} by day`} tools=${html`<${Segments} label="Unit" options=${UNITS} value=${unit} onChange=${setUnit} />`}>
      ${daily.error ? html`<${Failure} error=${daily.error} retry=${daily.reload} />` : !daily.data ? html`<${Loading} rows=${4} />`
        : html`<${Chart} key=${days} bars title=${`${title} by day`} height=${210} lines=${[{ label: title.toLowerCase(), token: "--series-0" }]} format=${number} data=${byDay(daily.data.data, [unit], Number(days))} />`}
    <//>
    <div class="grid">
      <${Card} flush title="By model" class="half"><${Sums} found=${models} name=${(row) => row.model} what="Model" unit=${unit} /><//>
      <${Card} flush title="By key" class="half"><${Sums} found=${keys} name=${(row) => row.key_name ?? row.key_id} what="Key" unit=${unit} /><//>
    </div>`;
}

function Sums({ found, name, what, unit }) {
  const { data, error } = found;
  if (error) return html`<${Failure} error=${error} retry=${found.reload} />`;
  if (!data) return html`<${Loading} rows=${3} />`;
  const rows = data.data.toSorted((left, right) => right[unit] - left[unit]).slice(0, 50);
  if (!rows.length) return html`<${Empty} icon="usage" title="Nothing was used in this time" />`;
  const most = Math.max(...rows.map((row) => row[unit]), 1e-9);
  const [, label] = UNITS.find(([each]) => each === unit);
  return html`<table class="table">
    <thead><tr><th scope="col">${what}</th>${unit !== "requests" && html`<th scope="col" class="number">Requests</th>`}<th scope="col" class="number">${label}</th><th scope="col"><span class="unseen">Share</span></th></tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${name(row)}><th scope="row" class="wrap">${name(row)}</th>
      ${unit !== "requests" && html`<td class="number">${whole(row.requests)}</td>`}<td class="number nowrap">${Number.isInteger(row[unit]) ? whole(row[unit]) : row[unit].toFixed(1)}</td>
      <td style=${{ width: "26%" }}><div class="bar" aria-hidden="true"><span style=${{ width: `${(100 * row[unit]) / most}%`, minWidth: 0 }}></span></div></td></tr>`)}</tbody></table>`;
}

const COLUMNS = ["day", "key_id", "key_name", "model", "requests", "prompt_tokens", "completion_tokens", "total_tokens", "megapixels", "audio_seconds", "gpu_seconds"];

/** Save all rows of the span as CSV. */
async function save(from) {
  const rows = [];
  for (;;) {
    const { data, total } = await api.get("api/v1/usage", { from, limit: 500, offset: rows.length });
    rows.push(...data);
    if (!data.length || rows.length >= total) break;
  }
  const cell = (value) => {
    const text = String(value ?? "");
    // a sheet must not take a name for a formula
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [COLUMNS, ...rows.map((row) => COLUMNS.map((name) => row[name]))].map((line) => line.map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
  link.download = `usage-from-${from}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}
