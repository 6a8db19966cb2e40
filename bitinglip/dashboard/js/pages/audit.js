/** The audit log: what was done, by whom, from where, and whether the log is whole. */
import { api } from "../api.js";
import { moment, relative, whole } from "../format.js";
import { html, useState } from "../html.js";
import { useLoaded } from "../load.js";
import { Dialog } from "../ui/dialog.js";
import { Icon } from "../ui/icons.js";
import { Pager } from "../ui/pages.js";
import { Badge, Button, Card, Empty, Failure, Loading, PageHead } from "../ui/parts.js";

const LIMIT = 50;
const GROUPS = ["", "key", "token", "model", "download", "worker", "cache", "auth", "access", "settings", "server", "audit"];

export default function Audit() {
  const [action, setAction] = useState("");
  const [offset, setOffset] = useState(0);
  const [shown, show] = useState(null);
  const [verdict, setVerdict] = useState(null);
  const entries = useLoaded((signal) => api.get("api/v1/audit", { action, limit: LIMIT, offset }, signal), [action, offset]);
  const { data, error } = entries;
  const choose = (event) => {
    setAction(event.target.value);
    setOffset(0);
  };
  return html`
    <${PageHead} title="Audit"><${Button} icon="audit" onClick=${async () => setVerdict(await api.get("api/v1/audit/verify"))}>Verify the log<//><//>
    ${verdict && html`<p class=${`note ${verdict.valid ? "" : "bad"}`} role="status"><${Icon} name=${verdict.valid ? "check" : "warn"} />
      ${verdict.valid ? `All ${whole(verdict.rows)} entries are as they were written.` : `Entry ${verdict.first_bad} was changed, removed or forged.`}</p>`}
    <${Card} flush title="Newest first" tools=${html`<label class="unseen" for="audit-action">Actions</label>
      <select id="audit-action" class="select narrow" value=${action} onChange=${choose}>
        ${GROUPS.map((name) => html`<option key=${name} value=${name}>${name || "all actions"}</option>`)}</select>
      <${Button} icon="again" label="Reload" onClick=${entries.reload} />`}>
      ${!data && (error ? html`<${Failure} error=${error} retry=${entries.reload} />` : html`<${Loading} rows=${6} />`)}
      ${data && (data.data.length ? html`<${Table} list=${data.data} show=${show} />` : html`<${Empty} icon="audit" title="No such entries" />`)}
      ${data && html`<${Pager} offset=${offset} limit=${LIMIT} total=${data.total} onChange=${setOffset} />`}
    <//>
    ${shown && html`<${Details} entry=${shown} onClose=${() => show(null)} />`}`;
}


function Table({ list, show }) {
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Action</th><th scope="col">Target</th><th scope="col">By</th><th scope="col">Outcome</th><th scope="col">From</th><th scope="col">When</th></tr></thead>
    <tbody>${list.map((entry) => html`<tr key=${entry.entry}>
      <th scope="row"><button type="button" class="link mono" onClick=${() => show(entry)}>${entry.action}</button></th>
      <td data-label="Target" class=${entry.target ? "target" : "none"}>${entry.target || "–"}</td>
      <td data-label="By">${entry.actor_name || entry.actor || "–"}</td>
      <td data-label="Outcome"><${Badge} state=${entry.outcome} tone=${entry.outcome === "ok" ? "ok" : "warn"} /></td>
      <td data-label="From" class=${`nowrap ${entry.address ? "" : "none"}`}>${entry.address || "–"}</td>
      <td data-label="When" class="nowrap"><time datetime=${entry.at} title=${moment(entry.at)}>${relative(entry.at)}</time></td>
    </tr>`)}</tbody></table></div>`;
}

function Details({ entry, onClose }) {
  const rows = [["Entry", entry.entry], ["When", moment(entry.at)], ["Target", entry.target], ["By", `${entry.actor_name ?? ""} ${entry.actor ?? ""}`.trim()],
    ["Outcome", entry.outcome], ["From", entry.address], ["Program", entry.user_agent], ["Request", entry.request_id]];
  return html`<${Dialog} title=${entry.action} wide onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Close<//>`}>
    <dl class="facts">${rows.filter(([, value]) => value).map(([name, value]) => html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}</dl>
    ${(entry.before || entry.after) && html`<${Changes} before=${entry.before ?? {}} after=${entry.after ?? {}} />`}
  <//>`;
}

function Changes({ before, after }) {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  const text = (value) => (value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  return html`<table class="table"><thead><tr><th scope="col">Field</th><th scope="col">Before</th><th scope="col">After</th></tr></thead>
    <tbody>${names.map((name) => html`<tr key=${name}><th scope="row">${name}</th><td class="wrap">${text(before[name])}</td><td class="wrap">${text(after[name])}</td></tr>`)}</tbody></table>`;
}
