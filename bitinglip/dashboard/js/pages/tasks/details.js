/** One task with its result, as far as that can be shown. */
import { api } from "../../api.js";
import { moment, seconds } from "../../format.js";
import { html } from "../../html.js";
import { useLoaded } from "../../load.js";
import { Dialog } from "../../ui/dialog.js";
import { Badge, Button, Code, Failure, Loading } from "../../ui/parts.js";

const LONGEST = 4000; // characters of a result that are shown

/** @param {{id: string, onClose: () => void}} props */
export function TaskDetails({ id, onClose }) {
  const task = useLoaded((signal) => api.get(`api/v1/tasks/${id}`, {}, signal), [id]);
  const { data, error } = task;
  return html`<${Dialog} title="Task" wide onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Close<//>`}>
    ${!data && (error ? html`<${Failure} error=${error} retry=${task.reload} />` : html`<${Loading} />`)}
    ${data && html`<dl class="facts">
      <dt>Id</dt><dd class="mono">${data.task_id}</dd>
      <dt>State</dt><dd><${Badge} state=${data.status} /></dd>
      <dt>Model</dt><dd>${data.model}</dd>
      <dt>Worker</dt><dd>${data.worker_id ?? "–"}</dd>
      <dt>Began</dt><dd>${moment(data.created_at)}</dd>
      <dt>Ended</dt><dd>${moment(data.completed_at)}</dd>
      <dt>Waited</dt><dd>${seconds(data.queue_time)}</dd>
      <dt>Took</dt><dd>${seconds(data.processing_time)}</dd>
      ${data.usage && html`<dt>Used</dt><dd>${Object.entries(data.usage).filter(([, value]) => typeof value === "number").map(([name, value]) => `${value} ${name.replaceAll("_", " ")}`).join(", ")}</dd>`}
    </dl>
    ${data.error && html`<p class="note bad" role="alert"><span><code>${data.error.code}</code> ${data.error.message}</span></p>`}
    ${data.result && html`<h3>Result</h3><${Code} text=${shownOf(data.result)} label="Copy the result" />`}`}
  <//>`;
}

/** The result as text: bytes are told by their length. */
function shownOf(result) {
  if (typeof result.text === "string") return result.text.slice(0, LONGEST);
  const text = JSON.stringify(result, (_name, value) => (typeof value === "string" && value.length > 200 ? `${value.length} characters` : value), 2);
  return text.slice(0, LONGEST);
}
