/** API keys: who may do what, for how long and how much. A secret is shown once. */
import { api } from "../api.js";
import { moment, relative } from "../format.js";
import { html, useState } from "../html.js";
import { useLoaded } from "../load.js";
import { confirm } from "../ui/dialog.js";
import { Badge, Button, Card, Empty, Failure, Loading, PageHead, Segments } from "../ui/parts.js";
import { tell } from "../ui/toast.js";
import { KeyDetails } from "./keys/details.js";
import { KeyForm } from "./keys/form.js";
import { Rotate, Secret } from "./keys/secret.js";

/** In a word, how a key is. */
export function stateOf(key) {
  if (key.revoked_at) return "revoked";
  if (key.expires_at && Date.parse(key.expires_at) < Date.now()) return "expired";
  return "active";
}

const TONES = { active: "ok", revoked: "plain", expired: "warn" };

export default function Keys() {
  const keys = useLoaded((signal) => api.get("api/v1/keys", { limit: 500 }, signal));
  const [filter, setFilter] = useState("active");
  const [dialog, open] = useState(null); // {name, key}
  const close = () => open(null);
  const done = (made) => {
    keys.reload();
    open(made ? { name: "secret", key: made } : null);
  };
  const list = (keys.data?.data ?? []).filter((key) => filter === "" || stateOf(key) === filter);
  return html`
    <${PageHead} title="Keys"><${Button} kind="first" icon="plus" onClick=${() => open({ name: "create" })}>Create a key<//><//>
    <${Card} flush title="API keys" tools=${html`<${Segments} label="State" options=${[["active", "Active"], ["", "All"]]} value=${filter} onChange=${setFilter} />`}>
      ${!keys.data && (keys.error ? html`<${Failure} error=${keys.error} retry=${keys.reload} />` : html`<${Loading} />`)}
      ${keys.data && (list.length ? html`<${Table} list=${list} open=${open} reload=${keys.reload} />`
        : html`<${Empty} icon="keys" title="No keys" text="Each program and person should have a key of its own, with the scopes that it needs." />`)}
    <//>
    ${dialog?.name === "create" && html`<${KeyForm} onClose=${close} onDone=${done} />`}
    ${dialog?.name === "change" && html`<${KeyForm} present=${dialog.key} onClose=${close} onDone=${() => done(null)} />`}
    ${dialog?.name === "rotate" && html`<${Rotate} present=${dialog.key} onClose=${close} onDone=${done} />`}
    ${dialog?.name === "secret" && html`<${Secret} made=${dialog.key} onClose=${close} />`}
    ${dialog?.name === "details" && html`<${KeyDetails} present=${dialog.key} onClose=${close} />`}`;
}

function Table({ list, open, reload }) {
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Name</th><th scope="col">State</th><th scope="col">Tier</th><th scope="col">Scopes</th>
      <th scope="col">Last used</th><th scope="col">Ends</th><th scope="col"><span class="unseen">Actions</span></th></tr></thead>
    <tbody>${list.map((key) => html`<tr key=${key.id}>
      <th scope="row"><button type="button" class="link" onClick=${() => open({ name: "details", key })}>${key.name}</button>
        <div class="small quiet mono">…${key.last_four}</div></th>
      <td data-label="State"><${Badge} state=${stateOf(key)} tone=${TONES[stateOf(key)]} /></td>
      <td data-label="Tier">${key.tier}</td>
      <td data-label="Scopes"><span class="scopes">${key.scopes.map((scope) => html`<${Badge} key=${scope} state=${scope} tone="plain" />`)}
        ${key.models && html`<${Badge} state=${`models ${key.models.join(" ")}`} tone="plain" />`}</span></td>
      <td class="nowrap" data-label="Last used"><time datetime=${key.last_used_at} title=${moment(key.last_used_at)}>${key.last_used_at ? relative(key.last_used_at) : "never"}</time></td>
      <td class="nowrap" data-label="Ends"><time datetime=${key.expires_at} title=${moment(key.expires_at)}>${key.expires_at ? relative(key.expires_at) : "never"}</time></td>
      <td class="tools">${stateOf(key) === "active" && html`<div class="buttons">
        <${Button} kind="tiny" onClick=${() => open({ name: "change", key })}>Change<//>
        <${Button} kind="tiny" icon="again" onClick=${() => open({ name: "rotate", key })}>Rotate<//>
        <${Button} kind="plain tiny danger" icon="bin" label=${`Revoke ${key.name}`} onClick=${() => revoke(key, reload)} /></div>`}</td>
    </tr>`)}</tbody></table></div>`;
}

async function revoke(key, reload) {
  const sure = await confirm({ title: "Revoke a key", text: `${key.name} (…${key.last_four}) stops working at once, and all its work ends. This cannot be undone.`, action: "Revoke", danger: true });
  if (!sure) return;
  await api.delete(`api/v1/keys/${key.id}`);
  tell(`${key.name} is revoked.`);
  reload();
}
