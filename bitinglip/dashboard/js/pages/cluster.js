/** What is not on this machine: nodes that run workers, gateways that share, servers that answer for models. */
import { bytes, moment, relative, seconds } from "../format.js";
import { html } from "../html.js";
import { live } from "../live.js";
import { useStore } from "../store.js";
import { Badge, Card, Empty, Failure, Loading, PageHead } from "../ui/parts.js";

const NO_NODE = "Workers run on this machine. Other machines come by Ray: workers.launcher: ray.";
const NO_GATEWAY = "No other server uses this database. Several share one by gateways.shared.";
const NO_UPSTREAM = "No loaded model is answered by another server. Settings name such servers: models.<name>.upstream.";

export default function Cluster() {
  const { state, now, reason } = useStore(live);
  if (now === null) {
    return html`<${PageHead} title="Cluster" />
      <${Card} flush>${state === "lost" ? html`<${Failure} error=${new Error(reason)} />` : html`<${Loading} rows=${6} />`}<//>`;
  }
  return html`
    <${PageHead} title="Cluster">${state !== "live" && html`<span role="status"><${Badge} state="reconnecting" tone="warn" /></span>`}<//>
    <${Card} flush title="Nodes">
      ${now.nodes.length ? html`<${Nodes} nodes=${now.nodes} devices=${now.devices} models=${now.models} />`
        : html`<${Empty} icon="cluster" title="No other machine" text=${NO_NODE} />`}<//>
    <${Card} flush title="Gateways">
      ${now.gateways.length ? html`<${Gateways} gateways=${now.gateways} />`
        : html`<${Empty} icon="cluster" title="No other gateway" text=${NO_GATEWAY} />`}<//>
    <${Card} flush title="Servers behind models">
      ${now.upstreams.length ? html`<${Upstreams} upstreams=${now.upstreams} />`
        : html`<${Empty} icon="cluster" title="No other server" text=${NO_UPSTREAM} />`}<//>`;
}

/** Silence of less than this is not worth a figure. */
const QUIET_SECONDS = 1;
const ago = (silence) => (silence < QUIET_SECONDS ? "just now" : `${seconds(silence)} ago`);

function Nodes({ nodes, devices, models }) {
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Node</th><th scope="col">State</th><th scope="col">Devices</th>
      <th scope="col" class="number">RAM free</th><th scope="col" class="number">Workers</th><th scope="col">Last heartbeat</th></tr></thead>
    <tbody>${nodes.map((node) => {
      const own = devices.filter((each) => node.devices.includes(each.id));
      const ram = own.find((each) => each.kind === "cpu");
      const cards = own.filter((each) => each.kind !== "cpu");
      const copied = models.filter((each) => each.copying?.node === node.id);
      // What is free on a node that is not there is unknown, and nothing of it can be used.
      const memory = (device) => node.state === "well"
        ? `${bytes(device.free_bytes)} of ${bytes(device.memory_bytes)}` : `? of ${bytes(device.memory_bytes)}`;
      return html`<tr key=${node.id}>
        <th scope="row">${node.id}<div class="small quiet mono">${node.address}</div>
          ${node.reason && html`<div class="small bad-text">${node.reason}</div>`}</th>
        <td data-label="State"><${Badge} state=${node.state} />
          ${copied.map((each) => html`<div key=${each.model_id} class="small quiet">copying ${each.model_id}: ${bytes(each.copying.bytes)} of ${bytes(each.copying.total_bytes)}</div>`)}
          ${Number.isInteger(node.model_bytes) && html`<div class="small quiet">${bytes(node.model_bytes)} of models copied</div>`}</td>
        <td data-label="Devices" class=${own.length ? "" : "none"}>${cards.map((each) => html`<div key=${each.id}>
          ${each.name} <span class="small quiet mono">${each.id}</span>
          ${each.state !== "well" && html` <${Badge} state=${each.state} />`}
          <div class="small quiet">${memory(each)} free</div></div>`)}
          ${!cards.length && (ram ? "no card" : "–")}</td>
        <td class=${`number nowrap ${ram ? "" : "none"}`} data-label="RAM free">${ram ? memory(ram) : "–"}</td>
        <td class="number" data-label="Workers">${node.workers}</td>
        <td class="nowrap" data-label="Last heartbeat">${ago(node.silent_seconds)}</td></tr>`;
    })}</tbody></table></div>`;
}

function Gateways({ gateways }) {
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Gateway</th><th scope="col">Version</th><th scope="col">Up since</th><th scope="col">Last heartbeat</th></tr></thead>
    <tbody>${gateways.map((each) => html`<tr key=${each.id}>
      <th scope="row"><span class="mono">${each.id}</span> ${each.own && html`<${Badge} state="this one" tone="plain" />`}</th>
      <td data-label="Version">${each.version}</td>
      <td class="nowrap" data-label="Up since"><time datetime=${each.started_at} title=${moment(each.started_at)}>${relative(each.started_at)}</time></td>
      <td class="nowrap" data-label="Last heartbeat">${ago(each.silent_seconds)}</td></tr>`)}</tbody></table></div>`;
}

function Upstreams({ upstreams }) {
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Server</th><th scope="col">State</th><th scope="col">Model</th><th scope="col" class="number">Running</th><th scope="col">Asked again</th></tr></thead>
    <tbody>${upstreams.map((each, index) => html`<tr key=${index}>
      <th scope="row">${each.url ? html`<span class="mono">${each.url}</span>` : `server ${index + 1}`}
        ${each.reason && html`<div class="small bad-text">${each.reason}</div>`}</th>
      <td data-label="State"><${Badge} state=${each.state} /></td>
      <td data-label="Model">${each.model}</td>
      <td class="number" data-label="Running">${each.in_flight}</td>
      <td data-label="Asked again" class=${each.reason ? "nowrap" : "none"}>${each.reason ? `in ${seconds(each.again_seconds)}` : "–"}</td>
    </tr>`)}</tbody></table></div>`;
}
