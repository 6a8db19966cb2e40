/** Tasks of this key, or of all for an admin: what runs, what has ended, and how. */
import { api } from "../api.js";
import { moment, relative, seconds } from "../format.js";
import { html, useState } from "../html.js";
import { useEvery, useLoaded } from "../load.js";
import { may } from "../session.js";
import { confirm } from "../ui/dialog.js";
import { Pager } from "../ui/pages.js";
import { Badge, Button, Card, Empty, Failure, Loading, PageHead, Segments } from "../ui/parts.js";
import { tell } from "../ui/toast.js";
import { TaskDetails } from "./tasks/details.js";

const STATES = [["", "All"], ["queued", "Queued"], ["running", "Running"], ["completed", "Completed"], ["failed", "Failed"], ["cancelled", "Cancelled"]];
const LIMIT = 50;
const ENDED = new Set(["completed", "failed", "cancelled"]);

export default function Tasks() {
  const [status, setStatus] = useState("");
  const [offset, setOffset] = useState(0);
  const [shown, show] = useState(null);
  const tasks = useLoaded((signal) => api.get("api/v1/tasks", { status, limit: LIMIT, offset }, signal), [status, offset]);
  useEvery(() => offset === 0 && tasks.reload(), 3000);
  const choose = (next) => {
    setStatus(next);
    setOffset(0);
  };
  const { data, error } = tasks;
  return html`
    <${PageHead} title="Tasks"><span class="quiet small">${may("admin") ? "of all keys" : "of your key"}</span><//>
    <${Card} flush title="Newest first" tools=${html`<${Segments} label="State" options=${STATES} value=${status} onChange=${choose} />`}>
      ${!data && (error ? html`<${Failure} error=${error} retry=${tasks.reload} />` : html`<${Loading} rows=${6} />`)}
      ${data && (data.data.length ? html`<${Table} list=${data.data} reload=${tasks.reload} show=${show} />`
        : html`<${Empty} icon="tasks" title=${status ? `No task is ${status}` : "No tasks yet"} text="Requests for inference are listed here while they run and for a while after." />`)}
      ${data && html`<${Pager} offset=${offset} limit=${LIMIT} total=${data.total} onChange=${setOffset} />`}
    <//>
    ${shown && html`<${TaskDetails} id=${shown} onClose=${() => show(null)} />`}`;
}

function Table({ list, reload, show }) {
  const cancel = async (task) => {
    const sure = await confirm({ title: "Cancel a task", text: `${task.task_id} for ${task.model} is ended; its client is told.`, action: "Cancel the task", danger: true });
    if (!sure) return;
    await api.delete(`api/v1/tasks/${task.task_id}`);
    tell("The task is cancelled.");
    reload();
  };
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Task</th><th scope="col">State</th><th scope="col">Model</th><th scope="col">Kind</th>
      <th scope="col" class="number">Waited</th><th scope="col" class="number">Took</th><th scope="col" class="number">Tokens</th>
      <th scope="col">Began</th><th scope="col"><span class="unseen">Actions</span></th></tr></thead>
    <tbody>${list.map((task) => html`<tr key=${task.task_id}>
      <th scope="row"><button type="button" class="link mono" title=${task.task_id} onClick=${() => show(task.task_id)}>…${task.task_id.slice(-8)}</button></th>
      <td data-label="State"><span><${Badge} state=${task.status} />${task.error ? html` <code class="bad-text small">${task.error.code}</code>` : ""}
        ${task.position ? html` <span class="small quiet">place ${task.position}</span>` : ""}</span></td>
      <td data-label="Model">${task.model}</td><td data-label="Kind">${task.kind}</td>
      <td class="number nowrap" data-label="Waited">${seconds(task.queue_time)}</td>
      <td class="number nowrap" data-label="Took">${seconds(task.processing_time)}</td>
      <td class=${`number ${task.usage?.total_tokens ? "" : "none"}`} data-label="Tokens">${task.usage?.total_tokens ?? "–"}</td>
      <td class="nowrap" data-label="Began"><time datetime=${task.created_at} title=${moment(task.created_at)}>${relative(task.created_at)}</time></td>
      <td class="tools"><div class="buttons">${!ENDED.has(task.status) && html`<${Button} kind="tiny" icon="stop" onClick=${() => cancel(task)}>Cancel<//>`}
        <${Button} kind="plain tiny" icon="info" label=${`Details of ${task.task_id}`} onClick=${() => show(task.task_id)} /></div></td>
    </tr>`)}</tbody></table></div>`;
}
