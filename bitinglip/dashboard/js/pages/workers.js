/** The worker processes: what they run, how they are, and the last lines they wrote. */
import { api, part } from "../api.js";
import { bytes, moment, relative } from "../format.js";
import { html, useState } from "../html.js";
import { useEvery, useLoaded } from "../load.js";
import { may } from "../session.js";
import { confirm, Dialog } from "../ui/dialog.js";
import { Badge, Button, Card, Code, Empty, Failure, Loading, PageHead } from "../ui/parts.js";
import { tell } from "../ui/toast.js";

export default function Workers() {
  const workers = useLoaded((signal) => api.get("api/v1/workers", { limit: 500 }, signal));
  const [shown, show] = useState(null);
  useEvery(workers.reload, 2000);
  const { data, error } = workers;
  const worker = data?.data.find((each) => each.id === shown);
  return html`
    <${PageHead} title="Workers" />
    ${data && error && html`<p class="note warn" role="status">${error.message}</p>`}
    <${Card} flush title="Processes">
      ${!data && (error ? html`<${Failure} error=${error} retry=${workers.reload} />` : html`<${Loading} />`)}
      ${data && (data.data.length ? html`<${Table} list=${data.data} reload=${workers.reload} show=${show} />`
        : html`<${Empty} icon="workers" title="No worker runs" text="A worker starts when a model is loaded." />`)}
    <//>
    ${worker && html`<${Details} worker=${worker} onClose=${() => show(null)} />`}`;
}

function Table({ list, reload, show }) {
  const writes = may("cluster:write");
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Worker</th><th scope="col">State</th><th scope="col">Devices</th>
      <th scope="col" class="number">Running</th><th scope="col" class="number">Restarts</th><th scope="col" class="number">Memory</th>
      <th scope="col">Up since</th><th scope="col"><span class="unseen">Actions</span></th></tr></thead>
    <tbody>${list.map((each) => html`<tr key=${`${each.id} ${each.pid}`}>
      <th scope="row"><button type="button" class="link" onClick=${() => show(each.id)}>${each.id}</button>
        <div class="small quiet">${each.model ? `${each.kind}, ` : "waits for a model, "}process ${each.pid}</div>
        ${each.cause && html`<div class="small bad-text">${each.cause}</div>`}</th>
      <td data-label="State"><${Badge} state=${each.state} /></td>
      <td class=${each.devices.length ? "" : "none"} data-label="Devices">${each.devices.join(", ") || "–"}</td>
      <td class="number" data-label="Running">${each.in_flight}</td>
      <td class="number" data-label="Restarts">${each.restarts}</td>
      <td class="number nowrap" data-label="Memory">${bytes(each.memory_bytes || each.ram_bytes)}</td>
      <td class="nowrap" data-label="Up since"><time datetime=${each.started_at} title=${moment(each.started_at)}>${relative(each.started_at)}</time></td>
      <td class="tools"><div class="buttons">
        ${writes && html`<${Button} kind="tiny" icon="again" onClick=${() => restart(each, reload)}>Restart<//>
          <${Button} kind="plain tiny danger" icon="stop" label=${`Stop ${each.id}`} onClick=${() => stop(each, reload)} />`}
        <${Button} kind="plain tiny" icon="info" label=${`Details of ${each.id}`} onClick=${() => show(each.id)} /></div></td>
    </tr>`)}</tbody></table></div>`;
}

async function restart(worker, reload) {
  if (worker.in_flight) {
    const sure = await confirm({ title: "Restart a worker", text: `${worker.id} runs ${worker.in_flight} requests. Those without output run again on the new worker; streams that have begun end with an error.`, action: "Restart", danger: true });
    if (!sure) return;
  }
  await api.post(`api/v1/workers/${part(worker.id)}/restart`);
  tell(`${worker.id} is being replaced.`);
  reload();
}

async function stop(worker, reload) {
  const sure = await confirm({ title: "Stop a worker", text: `${worker.id} is stopped until its model is asked for again.`, action: "Stop", danger: true });
  if (!sure) return;
  await api.delete(`api/v1/workers/${part(worker.id)}`);
  tell(`${worker.id} is stopped.`);
  reload();
}

function Details({ worker, onClose }) {
  const { confinement } = worker;
  return html`<${Dialog} title=${worker.id} wide onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Close<//>`}>
    <dl class="facts">
      <dt>State</dt><dd><${Badge} state=${worker.state} /> ${worker.cause}</dd>
      <dt>Model</dt><dd>${worker.model ?? "none: it waits as the spare"}</dd>
      <dt>Devices</dt><dd>${worker.devices.join(", ") || "–"}</dd>
      <dt>Memory</dt><dd>${bytes(worker.memory_bytes)} of the device, ${bytes(worker.ram_bytes)} resident</dd>
      <dt>Started</dt><dd>${moment(worker.started_at)}</dd>
      <dt>Heartbeat</dt><dd>${relative(worker.last_heartbeat)}</dd>
      ${confinement && html`<dt>Confined</dt><dd>${confinement.measures.join(", ").replaceAll("_", " ") || "no"}
        ${confinement.missing.length > 0 && html`<div class="bad-text small">missing: ${confinement.missing.join(", ")}</div>`}</dd>`}
    </dl>
    ${worker.stderr && (worker.stderr.length
      ? html`<h3>Last lines of its output</h3><${Code} text=${worker.stderr.join("\n")} label="Copy the output" />`
      : html`<p class="quiet small">It has written no output.</p>`)}
  <//>`;
}
