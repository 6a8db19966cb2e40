/** What the tabs of the playground share: the choice of a model, sliders, and the same call. */
import { html, useState } from "../../html.js";
import { Code, Field, Segments } from "../../ui/parts.js";

/** @param {{models: {model_id: string}[], value: string, onChange: (name: string) => void}} props */
export function ModelChoice({ models, value, onChange }) {
  if (models[0].typed) {
    return html`<${Field} id="play-model" label="Model" hint="Your key may use models, and not list them.">
      <input id="play-model" class="input" required spellcheck="false" value=${value} onInput=${(event) => onChange(event.target.value)} /><//>`;
  }
  return html`<${Field} id="play-model" label="Model">
    <select id="play-model" class="select" value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${models.map(({ model_id: name }) => html`<option key=${name} value=${name}>${name}</option>`)}</select><//>`;
}

/** @param {{id: string, label: string, value: number, min: number, max: number, step: number, onChange: (value: number) => void}} props */
export function Slider({ id, label, value, min, max, step, onChange }) {
  return html`<${Field} id=${id} label=${label}><div class="range">
    <input id=${id} type="range" min=${min} max=${max} step=${step} value=${value}
      onInput=${(event) => onChange(Number(event.target.value))} /><output for=${id}>${value}</output></div><//>`;
}

/** A whole number that may be left out. */
export function Whole({ id, label, value, onChange, min = 0, max, placeholder = "", step = 1 }) {
  return html`<${Field} id=${id} label=${label}><input id=${id} class="input" type="number" min=${min} max=${max} step=${step}
    placeholder=${placeholder} value=${value ?? ""} onInput=${(event) => onChange(event.target.value === "" ? null : Number(event.target.value))} /><//>`;
}

/** Drop what is not set, so that calls show only what was chosen. */
export function given(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value !== ""));
}

/** Where a program reaches this server. @param {string} path */
const address = (path) => new URL(path, document.baseURI.split("#")[0]).href;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** @param {string} path @param {object} body @param {string} [more] options of curl */
export function asCurl(path, body, more = "") {
  return `curl ${more}${address(path)} \\\n  -H "Authorization: Bearer $BITINGLIP_API_KEY" \\\n`
    + `  -H "Content-Type: application/json" \\\n  -d ${quoted(JSON.stringify(body, null, 2))}`;
}

/** The first lines of a program with the official client. */
export function pythonClient() {
  return `import os\nfrom openai import OpenAI\n\nclient = OpenAI(\n    base_url="${address("v1")}",\n    api_key=os.environ["BITINGLIP_API_KEY"],\n)\n`;
}

/** A call without the official client. @param {string} path @param {object} body */
export function asPython(path, body) {
  return `import os\nimport httpx\n\nanswer = httpx.post(\n    "${address(path)}",\n`
    + `    headers={"Authorization": f"Bearer {os.environ['BITINGLIP_API_KEY']}"},\n`
    + `    json=${python(body, 1)},\n    timeout=600,\n)\nanswer.raise_for_status()\nresult = answer.json()["result"]`;
}

/** The arguments of a call, each on its line. @param {object} fields */
export function pythonArguments(fields) {
  return Object.entries(fields).map(([name, value]) => `    ${name}=${python(value, 1)},\n`).join("");
}

/** A value as Python writes it. */
export function python(value, depth = 0) {
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((each) => `${pad}${python(each, depth + 1)},\n`).join("")}${end}]` : "[]";
  }
  const rows = Object.entries(value).map(([name, each]) => `${pad}${JSON.stringify(name)}: ${python(each, depth + 1)},\n`);
  return rows.length ? `{\n${rows.join("")}${end}}` : "{}";
}

/** The same call, to take away; it names a variable and never a key. @param {{curl: string, code: string}} props */
export function SameCall({ curl, code }) {
  const [shown, show] = useState("curl");
  return html`<section class="card" aria-label="The same call"><div class="card-head"><h2>The same call</h2>
    <${Segments} label="Language" options=${[["curl", "curl"], ["python", "Python"]]} value=${shown} onChange=${show} /></div>
    <div class="card-body"><${Code} text=${shown === "curl" ? curl : code} label="Copy the call" /></div></section>`;
}

/** Bytes of base64 as a blob. */
export function blobOf(base64, type) {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type });
}
