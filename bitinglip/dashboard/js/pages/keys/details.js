/** One key: what it may do, what it has left of its limits, and what it has used. */
import { api } from "../../api.js";
import { moment, number, seconds } from "../../format.js";
import { html } from "../../html.js";
import { useLoaded } from "../../load.js";
import { Chart } from "../../ui/chart.js";
import { Dialog } from "../../ui/dialog.js";
import { Button, Failure, Loading } from "../../ui/parts.js";
import { byDay, dayBefore } from "../usage/days.js";

const DAYS = 30;

/** @param {{present: any, onClose: () => void}} props */
export function KeyDetails({ present, onClose }) {
  const limits = useLoaded((signal) => api.get("api/v1/limits", { key_id: present.id }, signal), [present.id]);
  const usage = useLoaded((signal) => api.get("api/v1/usage", { key_id: present.id, group_by: "day", from: dayBefore(DAYS - 1), limit: 500 }, signal), [present.id]);
  return html`<${Dialog} title=${present.name} wide onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Close<//>`}>
    <dl class="facts">
      <dt>Id</dt><dd class="mono">${present.id}</dd>
      <dt>Tier</dt><dd>${present.tier}</dd>
      <dt>Scopes</dt><dd>${present.scopes.join(", ")}</dd>
      ${present.models && html`<dt>Models</dt><dd>${present.models.join(", ")}</dd>`}
      ${present.ip_ranges && html`<dt>Addresses</dt><dd>${present.ip_ranges.join(", ")}</dd>`}
      <dt>Made</dt><dd>${moment(present.created_at)}</dd>
      ${present.rotated_at && html`<dt>Rotated</dt><dd>${moment(present.rotated_at)}</dd>`}
      ${present.grace_until && html`<dt>Old secret ends</dt><dd>${moment(present.grace_until)}</dd>`}
      ${present.rotate_by && html`<dt>Rotate by</dt><dd>${moment(present.rotate_by)}</dd>`}
      ${present.expires_at && html`<dt>Ends</dt><dd>${moment(present.expires_at)}</dd>`}
      ${present.revoked_at && html`<dt>Revoked</dt><dd>${moment(present.revoked_at)}</dd>`}
    </dl>
    <h3>Limits</h3>
    ${limits.error ? html`<${Failure} error=${limits.error} retry=${limits.reload} />` : !limits.data ? html`<${Loading} rows=${2} />` : html`<${Limits} ...${limits.data} />`}
    <h3>Tokens of the last ${DAYS} days</h3>
    ${usage.error ? html`<${Failure} error=${usage.error} retry=${usage.reload} />` : !usage.data ? html`<${Loading} rows=${2} />`
      : html`<${Chart} bars title="Tokens by day" height=${120} lines=${[{ label: "tokens", token: "--series-0" }]} format=${number} data=${byDay(usage.data.data, ["total_tokens"], DAYS)} />`}
  <//>`;
}

function Limits({ rates, concurrent, quotas }) {
  const rows = [
    ...rates.map((rate) => [`${rate.name}${rate.route ? ` ${rate.route}` : ""}`, rate.limit - rate.remaining, rate.limit, rate.reset_seconds]),
    ...(concurrent.limit ? [["at once", concurrent.used, concurrent.limit, null]] : []),
    ...quotas.map((quota) => [`${quota.unit.replaceAll("_", " ")} a ${quota.period}`, quota.used, quota.limit, quota.reset_seconds]),
  ];
  if (!rows.length) return html`<p class="quiet">It has no limits.</p>`;
  return html`<ul class="limits">${rows.map(([name, used, limit, reset], index) => html`<li key=${index}>
    <span class="grow">${name}</span><span class="quiet small nowrap">${number(Math.max(0, used))} of ${number(limit)}${reset ? `, full again in ${seconds(reset)}` : ""}</span>
    <div class="bar" aria-hidden="true"><span style=${{ width: `${Math.min(100, (100 * Math.max(0, used)) / Math.max(1, limit))}%`, minWidth: 0 }}></span></div></li>`)}</ul>`;
}
