/**
 * The form that makes a key, or changes what one may do. Its fields have a default and no value: they
 * keep what is typed when the page is drawn again, as the list of keys comes or the server refuses.
 */
import { api } from "../../api.js";
import { html, useState } from "../../html.js";
import { askKey } from "../../ask_key.js";
import { Dialog } from "../../ui/dialog.js";
import { Icon } from "../../ui/icons.js";
import { Button, Field } from "../../ui/parts.js";

const SCOPES = [
  ["models:read", "see the models"],
  ["inference:text", "texts, embeddings, rerank"],
  ["inference:image", "images"],
  ["inference:audio", "speech and transcription"],
  ["cluster:read", "see devices, queues, workers"],
  ["cluster:write", "load, pull, remove models; stop workers"],
  ["admin", "everything, keys too"],
];
const TIERS = ["free", "pro", "enterprise", "operator"];
const LIVES = [["", "never"], ["1d", "in a day"], ["7d", "in a week"], ["30d", "in 30 days"], ["90d", "in 90 days"], ["365d", "in a year"]];
const QUOTAS = [["requests", "Requests"], ["tokens", "Tokens"], ["megapixels", "Megapixels"], ["audio_seconds", "Audio seconds"], ["gpu_seconds", "GPU seconds"]];

/** @param {{present?: any, onClose: () => void, onDone: (made: any) => void}} props */
export function KeyForm({ present, onClose, onDone }) {
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const fields = fieldsOf(form, present);
    if (!fields.scopes.length) {
      setFailure("Choose at least one scope.");
      return;
    }
    setBusy(true);
    try {
      const key = await askKey("Keys are made and changed with a key, not with a session.");
      onDone(present ? await api.patch(`api/v1/keys/${present.id}`, fields, key) : await api.post("api/v1/keys", fields, undefined, key));
    } catch (error) {
      setFailure(error.name === "AbortError" ? null : error.message);
      setBusy(false);
    }
  };
  const title = present ? `Change ${present.name}` : "Create a key";
  return html`<${Dialog} title=${title} wide onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Cancel<//>
      <button class="button first" type="submit" form="key-form" disabled=${busy}>${present ? "Save" : "Create"}</button>`}>
    <form id="key-form" class="form" onSubmit=${submit}>
      <${Field} id="key-name" label="Name" hint="Who or what uses it.">
        <input id="key-name" name="name" class="input" required maxlength="128" data-first autocomplete="off" defaultValue=${present?.name ?? ""} aria-describedby="key-name-hint" /><//>
      <div class="pair">
        <${Field} id="key-tier" label="Tier"><select id="key-tier" name="tier" class="select">
          ${TIERS.map((tier) => html`<option key=${tier} value=${tier} selected=${tier === (present?.tier ?? "free")}>${tier}</option>`)}</select><//>
        <${Field} id="key-expires" label="Ends"><select id="key-expires" name="expires" class="select">
          ${present && html`<option value="keep" selected>as it is</option>`}
          ${LIVES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>
      </div>
      <fieldset class="scopes-choice"><legend>Scopes</legend>
        ${SCOPES.map(([scope, text]) => html`<label key=${scope} class="check"><input type="checkbox" name="scope" value=${scope}
          defaultChecked=${present ? present.scopes.includes(scope) : ["models:read", "inference:text"].includes(scope)} />
          <span><span class="mono">${scope}</span> <span class="quiet small">${text}</span></span></label>`)}</fieldset>
      <details open=${Boolean(present?.models || present?.ip_ranges || present?.quotas)}><summary>Narrow it: models, addresses, quotas of a day</summary><div class="form details">
        <div class="pair">
          <${Field} id="key-models" label="Models" hint="Patterns, by commas; empty: all.">
            <input id="key-models" name="models" class="input" placeholder="demo-*" defaultValue=${present?.models?.join(", ") ?? ""} /><//>
          <${Field} id="key-ranges" label="Addresses" hint="Networks, by commas; empty: all.">
            <input id="key-ranges" name="ip_ranges" class="input" placeholder="10.0.0.0/8" defaultValue=${present?.ip_ranges?.join(", ") ?? ""} /><//>
        </div>
        <div class="pair">${QUOTAS.map(([name, label]) => html`<${Field} key=${name} id=${`quota-${name}`} label=${label}>
          <input id=${`quota-${name}`} name=${`quota-${name}`} class="input" type="number" min="0" step="any" placeholder="as the tier" defaultValue=${dailyOf(present)[name] ?? ""} /><//>`)}</div>
      </div></details>
      ${failure && html`<p class="note bad" role="alert"><${Icon} name="warn" />${failure}</p>`}
    </form>
  <//>`;
}

/** A key's own quotas of a day; amounts outside of a period are a day's. */
function dailyOf(present) {
  const { daily, monthly: _monthly, ...bare } = present?.quotas ?? {};
  return { ...bare, ...daily };
}

function fieldsOf(form, present) {
  const text = (name) => form.elements[name].value.trim();
  const list = (name) => text(name).split(/[\s,]+/).filter(Boolean);
  const fields = {
    name: text("name"),
    tier: text("tier"),
    scopes: [...form.querySelectorAll('input[name="scope"]:checked')].map((box) => box.value),
  };
  for (const name of ["models", "ip_ranges"]) {
    const chosen = list(name);
    if (chosen.length) fields[name] = chosen;
    else if (present?.[name]) fields[name] = null; // lifts it
  }
  const expires = form.elements.expires.value;
  if (expires && expires !== "keep") fields.expires = expires;
  else if (present?.expires_at && expires === "") fields.expires = null;
  const daily = Object.fromEntries(QUOTAS.map(([name]) => [name, text(`quota-${name}`)]).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
  const monthly = present?.quotas?.monthly ?? null;
  if (Object.keys(daily).length || monthly) fields.quotas = { daily, ...(monthly ? { monthly } : {}) };
  else if (present?.quotas) fields.quotas = null;
  return fields;
}
