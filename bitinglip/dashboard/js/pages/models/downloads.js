/** Downloads that wait or run, and those that ended in the last day. */
import { cancelDownload, downloads, forgetDownload, isOpen, loadDownloads, resumeDownload } from "../../downloads.js";
import { bytes, relative, seconds } from "../../format.js";
import { html } from "../../html.js";
import { useEvery } from "../../load.js";
import { useStore } from "../../store.js";
import { confirm } from "../../ui/dialog.js";
import { Badge, Button, Card } from "../../ui/parts.js";

const RUNNING = { pull: "downloading", update: "updating", repair: "repairing" };
const SHOWN = 86_400_000; // milliseconds for which one that ended is shown

/** What a download does, in a word. */
const wordOf = ({ state, task }) => (state === "running" ? RUNNING[task] ?? state : state);

export function Downloads() {
  const all = useStore(downloads);
  useEvery(() => all.some(isOpen) && loadDownloads().catch(() => undefined), 5000);
  const shown = all.filter((each) => isOpen(each) || Date.now() - Date.parse(each.finished_at ?? each.created_at) < SHOWN);
  if (!shown.length) return null;
  return html`<${Card} title="Downloads" flush><ul class="downloads">
    ${shown.map((each) => html`<${Row} key=${each.id} download=${each} />`)}</ul><//>`;
}

function Row({ download }) {
  const { model, state, bytes_done: done, bytes_total: total, rate, error } = download;
  const part = total ? done / total : 0;
  const left = rate && total ? (total - done) / rate : null;
  const unfinished = ["failed", "cancelled"].includes(state);
  const purge = async () => {
    const sure = await confirm({ title: "Throw away a download", text: `What has come of ${model} (${bytes(done)}) is deleted.`, action: "Delete", danger: true });
    if (sure) await forgetDownload(download.id, true);
  };
  return html`<li class="download">
    <div class="grow">
      <p class="download-head"><strong class="clip">${model}</strong><${Badge} state=${wordOf(download)} tone=${state === "running" ? "info" : undefined} />
        ${download.revision && html`<span class="small quiet mono clip">${download.revision.slice(0, 12)}</span>`}</p>
      ${isOpen(download) && html`<div class="bar" role="progressbar" aria-label=${`Download of ${model}`}
        aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(part * 100)}>
        <span style=${{ width: `${part * 100}%`, minWidth: 0 }}></span></div>`}
      <p class="small quiet">${bytes(done)}${total ? ` of ${bytes(total)}` : ""}
        ${isOpen(download) && rate ? ` · ${bytes(rate)}/s` : ""}${left !== null && isOpen(download) ? ` · ${seconds(left)} left` : ""}
        ${download.files?.length ? ` · ${download.files.length} files` : ""}
        ${!isOpen(download) ? ` · ${relative(download.finished_at)}` : ""}</p>
      ${error && html`<p class="small bad-text">${error.message}</p>`}
      ${download.waits_for && html`<p class="small quiet">Waits for ${download.waits_for}</p>`}
    </div>
    <div class="buttons">
      ${isOpen(download) && html`<${Button} kind="tiny" icon="stop" onClick=${() => cancelDownload(download.id)}>Cancel<//>`}
      ${unfinished && html`<${Button} kind="tiny" icon="again" onClick=${() => resumeDownload(download)}>Resume<//>
        <${Button} kind="plain tiny danger" icon="bin" label=${`Delete what has come of ${model}`} onClick=${purge} />`}
      ${state === "completed" && html`<${Button} kind="plain tiny" icon="close" label=${`Take ${model} off the list`} onClick=${() => forgetDownload(download.id, false)} />`}</div>
  </li>`;
}
