/** The models of the store: what they are, whether they are loaded, and what can be done with them. */
import { api, part } from "../api.js";
import { downloads, isOpen, leaveDownloads, loadDownloads } from "../downloads.js";
import { number, percent } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { live } from "../live.js";
import { useEvery, useLoaded } from "../load.js";
import { may } from "../session.js";
import { useStore } from "../store.js";
import { confirm } from "../ui/dialog.js";
import { Badge, Button, Card, Empty, Failure, Loading, PageHead, Segments } from "../ui/parts.js";
import { tell } from "../ui/toast.js";
import { Details } from "./models/details.js";
import { Downloads } from "./models/downloads.js";
import { Pull } from "./models/pull.js";

const TYPES = [["", "All"], ["text", "Text"], ["image", "Image"], ["audio", "Audio"], ["embedding", "Embedding"]];
const EVERY = 4000; // milliseconds between looks where there is no live stream

export default function Models() {
  const [type, setType] = useState("");
  const [search, setSearch] = useState("");
  const [pulling, setPulling] = useState(false);
  const [shown, show] = useState(null);
  const models = useLoaded((signal) => api.get("api/v1/models", { limit: 500 }, signal));
  const writes = may("cluster:write");
  const open = useStore(downloads).filter(isOpen).length;
  useEffect(() => {
    if (writes) loadDownloads().catch(() => undefined);
    return leaveDownloads;
  }, []);
  useEffect(models.reload, [open]);
  useEvery(models.reload, EVERY);
  const list = (models.data?.data ?? []).filter(
    (each) => (!type || each.type === type) && each.model_id.toLowerCase().includes(search.toLowerCase()),
  );
  return html`
    <${PageHead} title="Models">
      ${writes && html`<${Button} kind="first" icon="pull" onClick=${() => setPulling(true)}>Pull a model<//>`}
    <//>
    ${writes && html`<${Downloads} />`}
    <${Card} flush title="In the store" tools=${html`
      <label class="unseen" for="model-search">Search models</label>
      <input id="model-search" class="input search" type="search" placeholder="Search" value=${search}
        onInput=${(event) => setSearch(event.target.value)} />
      <${Segments} label="Type" options=${TYPES} value=${type} onChange=${setType} />`}>
      ${models.data === null && (models.error ? html`<${Failure} error=${models.error} retry=${models.reload} />` : html`<${Loading} rows=${5} />`)}
      ${models.data !== null && (list.length
        ? html`<${Table} list=${list} writes=${writes} reload=${models.reload} show=${show} />`
        : html`<${Nothing} searched=${search || type} writes=${writes} pull=${() => setPulling(true)} />`)}
    <//>
    ${pulling && html`<${Pull} onClose=${() => setPulling(false)} />`}
    ${shown && html`<${Details} model=${shown} onClose=${() => show(null)} />`}`;
}

function Nothing({ searched, writes, pull }) {
  if (searched) return html`<${Empty} icon="search" title="No model matches" />`;
  return html`<${Empty} icon="models" title="No models yet" text="Pull one from the hub, or import a folder with: bitinglip models import">
    ${writes && html`<${Button} kind="first" icon="pull" onClick=${pull}>Pull a model<//>`}<//>`;
}

function Table({ list, writes, reload, show }) {
  const { now } = useStore(live);
  const states = new Map((now?.models ?? []).map((each) => [each.model_id, each]));
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Model</th><th scope="col">State</th><th scope="col">Type</th>
      <th scope="col" class="number">Size</th><th scope="col" class="number">Context</th>
      <th scope="col">Licence</th><th scope="col"><span class="unseen">Actions</span></th></tr></thead>
    <tbody>${list.map((model) => html`<${Row} key=${model.model_id} model=${model} writes=${writes}
      state=${states.get(model.model_id)} reload=${reload} show=${show} />`)}</tbody>
  </table></div>`;
}

function Row({ model, state, writes, reload, show }) {
  const name = model.model_id;
  const status = state?.status ?? model.status;
  const progress = state?.progress ?? model.progress;
  const copying = state ? state.copying : model.copying;
  const loaded = status === "ready";
  const coming = status === "downloading"; // there is nothing to load or to show yet
  return html`<tr>
    <th scope="row">${coming ? name : html`<button type="button" class="link" onClick=${() => show(model)}>${name}</button>`}
      ${model.kind === "adapter" && html`<div class="small quiet">${model.base ? `LoRA of ${model.base}` : "LoRA"}</div>`}
      ${model.description && html`<div class="small quiet clip description">${model.description}</div>`}
      ${status === "error" && model.cause && html`<div class="small bad-text">${model.cause}</div>`}</th>
    <td data-label="State"><span class="nowrap"><${Badge} state=${status} />
      ${status === "loading" && progress !== null && !copying ? html` <span class="small quiet">${percent(progress)}</span>` : ""}
      ${state?.pinned ? html` <${Badge} state="stays loaded" tone="plain" />` : ""}</span>
      ${status === "loading" && copying ? html`<div class="small quiet">${percent(progress)} copied to ${copying.node}</div>` : ""}</td>
    <td data-label="Type" class=${model.type ? "" : "none"}>${model.type ?? "–"}</td>
    <td class="number nowrap" data-label="Size">${model.engine === "upstream" ? "–" : (model.size ?? "–")}</td>
    <td class=${`number ${model.max_context ? "" : "none"}`} data-label="Context">${model.max_context ? number(model.max_context) : "–"}</td>
    <td class=${model.license ? "" : "none"} data-label="Licence">${model.license ?? "–"}</td>
    <td class="tools"><div class="buttons">
      ${writes && !coming && (loaded || status === "loading"
        ? html`<${Button} kind="tiny" icon="eject" disabled=${status === "loading"} onClick=${() => unload(name, reload)}>Unload<//>`
        : html`<${Button} kind="tiny" icon="play" onClick=${() => load(name, reload)}>Load<//>`)}
      ${writes && !coming && html`<${Button} kind=${`plain tiny ${model.pinned ? "on" : ""}`} icon="pin" aria-pressed=${String(Boolean(model.pinned))}
        label=${`Pin ${name}`} onClick=${() => pin(model, reload)} />`}
      ${!coming && html`<${Button} kind="plain tiny" icon="info" label=${`Details of ${name}`} onClick=${() => show(model)} />`}
      ${writes && !coming && html`<${Button} kind="plain tiny danger" icon="bin" label=${`Remove ${name}`} onClick=${() => remove(model, reload)} />`}
    </div></td></tr>`;
}

async function load(name, reload) {
  await api.post(`api/v1/models/${part(name)}/load`);
  tell(`${name} is loaded.`);
  reload();
}

async function unload(name, reload) {
  await api.post(`api/v1/models/${part(name)}/unload`);
  tell(`${name} is unloaded.`);
  reload();
}

async function pin({ model_id: name, pinned }, reload) {
  await api.patch(`api/v1/models/${part(name)}`, { pinned: !pinned });
  tell(pinned ? `Clean-ups may remove ${name} again.` : `${name} is pinned: no clean-up removes it.`);
  reload();
}

async function remove(model, reload) {
  const sure = await confirm({
    title: "Remove a model",
    text: `${model.model_id} (${model.size}) is unloaded, and its files are deleted from the store.`,
    action: "Remove",
    danger: true,
    type: model.model_id,
  });
  if (!sure) return;
  await api.delete(`api/v1/models/${part(model.model_id)}`);
  tell(`${model.model_id} is removed.`);
  reload();
}
