/** The last requests, for admins: how each ended, and where its time went. No bodies. */
import { api } from "../api.js";
import { moment, relative, seconds, whole } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { live } from "../live.js";
import { useLoaded } from "../load.js";
import { useStore } from "../store.js";
import { Dialog } from "../ui/dialog.js";
import { Badge, Button, Card, Empty, Failure, Loading, PageHead, Segments } from "../ui/parts.js";

const MOST = 200;
const SHOWN = [["work", "Inference"], ["failed", "Failed"], ["", "All"]];
/** Stages in the order in which they come, with their colours. */
const STAGES = [["queue", "Queue", "--series-2"], ["load", "Load of the model", "--series-3"], ["first_token", "First token", "--series-1"], ["rest", "Rest of the work", "--series-0"], ["overhead", "Gateway", "--foreign"]];

export default function Requests() {
  const { now } = useStore(live);
  const [shown, show] = useState("work");
  const [paused, pause] = useState(false);
  const [chosen, choose] = useState(null);
  const requests = useLoaded((signal) => api.get("api/v1/cluster/requests", { limit: MOST }, signal));
  const seen = now?.requests_seen;
  useEffect(() => {
    if (!paused && requests.data) requests.reload();
  }, [seen, paused]);
  const { data, error } = requests;
  const list = (data?.data ?? []).filter((each) => shown === "" || (shown === "work" ? each.task_id : each.status >= 400));
  return html`
    <${PageHead} title="Requests"><${Button} icon=${paused ? "play" : "stop"} onClick=${() => pause(!paused)}>${paused ? "Go on" : "Pause"}<//><//>
    <${Card} flush title="Newest first" tools=${html`<${Legend} />
      <${Segments} label="Shown" options=${SHOWN} value=${shown} onChange=${show} />`}>
      ${!data && (error ? html`<${Failure} error=${error} retry=${requests.reload} />` : html`<${Loading} rows=${6} />`)}
      ${data && (list.length ? html`<${Table} list=${list} choose=${choose} />`
        : html`<${Empty} icon="requests" title="No such requests yet" text=${`The last ${whole(MOST)} requests are listed here, with the time of each stage. What was said is not kept.`} />`)}
    <//>
    ${chosen && html`<${Details} request=${chosen} onClose=${() => choose(null)} />`}`;
}

function Legend() {
  return html`<ul class="legend" aria-hidden="true">${STAGES.map(([name, title, colour]) => html`<li key=${name}>
    <span class="swatch" style=${{ background: `var(${colour})` }}></span>${title}</li>`)}</ul>`;
}

function Table({ list, choose }) {
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Request</th><th scope="col">Status</th><th scope="col">Model</th><th scope="col">Key</th>
      <th scope="col" class="number">Tokens</th><th scope="col" class="number">Total</th><th scope="col">Stages</th><th scope="col">Ended</th></tr></thead>
    <tbody>${list.map((each) => html`<tr key=${each.request_id}>
      <th scope="row"><button type="button" class="link" onClick=${() => choose(each)}><span class="quiet small">${each.method}</span> ${each.route}</button></th>
      <td data-label="Status"><${Badge} state=${String(each.status)} tone=${tone(each.status)} /></td>
      <td data-label="Model" class=${each.model ? "" : "none"}>${each.model ?? "–"}</td>
      <td data-label="Key" class=${each.key_name ? "" : "none"}>${each.key_name ?? "–"}</td>
      <td data-label="Tokens" class=${`number nowrap ${tokens(each) === "–" ? "none" : ""}`}>${tokens(each)}</td>
      <td data-label="Total" class="number nowrap">${seconds(each.seconds.total)}</td>
      <td data-label="Stages" class=${each.task_id ? "stages" : "none"}>${each.task_id ? html`<${Stages} request=${each} />` : "–"}</td>
      <td data-label="Ended" class="nowrap"><time datetime=${each.at} title=${moment(each.at)}>${relative(each.at)}</time></td>
    </tr>`)}</tbody></table></div>`;
}

const tone = (status) => (status < 400 ? "ok" : status === 499 ? "plain" : status < 500 ? "warn" : "bad");
const tokens = ({ prompt_tokens: read, completion_tokens: made }) => (read || made ? `${whole(read)} + ${whole(made)}` : "–");

/** The seconds of each stage; those of the work after the first token are its rest. */
function partsOf({ seconds: told }) {
  const rest = told.work === null ? null : told.work - (told.first_token ?? 0);
  return STAGES.map(([name, title, colour]) => ({ name, title, colour, value: name === "rest" ? rest : told[name] }))
    .filter(({ value }) => value !== null);
}

function Stages({ request }) {
  const parts = partsOf(request);
  const all = parts.reduce((sum, { value }) => sum + value, 0) || 1;
  const told = parts.map(({ title, value }) => `${title} ${seconds(value)}`).join(", ");
  return html`<div class="bar" role="img" aria-label=${told} title=${told}>
    ${parts.map(({ name, colour, value }) => html`<span key=${name} style=${{ width: `${(100 * value) / all}%`, minWidth: 0, background: `var(${colour})` }}></span>`)}</div>`;
}

function Details({ request, onClose }) {
  const facts = [["When", moment(request.at)], ["Status", request.status], ["Model", request.model], ["Kind", request.kind], ["Worker", request.worker],
    ["Key", request.key_name && `${request.key_name} (${request.key_id})`], ["Tokens", tokens(request) !== "–" && `${whole(request.prompt_tokens)} read, ${whole(request.completion_tokens)} made`],
    ["Request", request.request_id], ["Task", request.task_id]];
  const parts = partsOf(request);
  return html`<${Dialog} title=${`${request.method} ${request.route}`} wide onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Close<//>`}>
    <${Stages} request=${request} />
    <table class="table"><thead><tr><th scope="col">Stage</th><th scope="col" class="number">Took</th></tr></thead>
      <tbody>${parts.map(({ name, title, colour, value }) => html`<tr key=${name}><th scope="row"><span class="swatch inline" style=${{ background: `var(${colour})` }}></span>${title}</th><td class="number">${seconds(value)}</td></tr>`)}
        <tr><th scope="row">${request.asynchronous ? "This request; the task goes on by itself" : "Total"}</th><td class="number">${seconds(request.seconds.total)}</td></tr></tbody></table>
    <dl class="facts">${facts.filter(([, value]) => value).map(([name, value]) => html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}</dl>
  <//>`;
}
