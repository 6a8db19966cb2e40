/** All that is known of one model, and whether it fits the machine. */
import { api, part } from "../../api.js";
import { bytes, number, seconds, whole } from "../../format.js";
import { html } from "../../html.js";
import { useLoaded } from "../../load.js";
import { Dialog } from "../../ui/dialog.js";
import { Badge, Button, Failure, Loading } from "../../ui/parts.js";

/** @param {{model: any, onClose: () => void}} props */
export function Details({ model, onClose }) {
  const load = Object.entries(model.load_seconds ?? {});
  const facts = [
    ["Type", model.type],
    ["LoRA of", model.kind === "adapter" && model.base],
    ["Architecture", model.architecture],
    ["Engine", model.engine],
    ["Parameters", model.parameters ? number(model.parameters) : null],
    ["Context", model.max_context ? `${whole(model.max_context)} tokens` : null],
    ["Data type", model.dtype],
    ["Device", model.device],
    ["Size on disk", model.engine === "upstream" ? null : bytes(model.bytes)],
    ["Licence", model.license],
    ["Languages", model.languages?.join?.(", ")],
    ["At once", model.sequential && `requests take turns: ${model.sequential}`],
    ["Worker of its own", model.merged],
    ["Pinned", model.pinned && "yes"],
    ["Note", model.notes],
    ["Source", model.source],
    ["Revision", model.revision],
    ["Last loads", load.map(([source, took]) => `${seconds(took)} from ${source}`).join(", ")],
    ["Capabilities", model.capabilities?.join(", ")],
    ["Voices", model.voices?.map((voice) => voice.id ?? voice).slice(0, 12).join(", ")],
  ];
  return html`<${Dialog} title=${model.model_id} onClose=${onClose} wide
    foot=${html`<${Button} onClick=${onClose}>Close<//>`}>
    ${model.description && html`<p class="quiet">${model.description}</p>`}
    ${model.cause && html`<p class="note bad">${model.cause}</p>`}
    <${Fit} name=${model.model_id} />
    <dl class="facts">${facts.filter(([, value]) => value).map(([name, value]) =>
      html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}</dl>
  <//>`;
}

const TONES = { true: "ok", false: "bad" };

function Fit({ name }) {
  const fit = useLoaded((signal) => api.get(`api/v1/models/${part(name)}/fit`, {}, signal), [name]);
  if (fit.error) return html`<${Failure} error=${fit.error} retry=${fit.reload} />`;
  if (!fit.data) return html`<${Loading} rows=${2} />`;
  const { data } = fit;
  const parts = data.needs ? [
    ["weights", data.needs.weights_bytes, 0],
    ["cache", data.needs.cache_bytes, 1],
    ["activations", data.needs.activation_bytes, 2],
    ["libraries", data.needs.overhead_bytes, 7],
  ].filter(([, size]) => size > 0) : [];
  const all = parts.reduce((sum, [, size]) => sum + size, 0) || 1;
  return html`<section class="fit" aria-label="Fit">
    <p><${Badge} state=${data.verdict.replaceAll("_", " ")} tone=${TONES[data.fits]} /> ${data.message}</p>
    ${data.needs && html`
      <div class="bar" role="img" aria-label=${`Needs ${bytes(data.needs.total_bytes)}`}>
        ${parts.map(([part_, size, index]) => html`<span key=${part_} style=${{ width: `${(100 * size) / all}%`, background: `var(--series-${index})` }}></span>`)}</div>
      <ul class="legend"><li><b>${bytes(data.needs.total_bytes)}</b> ${data.needs.source}</li>
        ${parts.map(([part_, size, index]) => html`<li key=${part_}><span class="swatch" style=${{ background: `var(--series-${index})` }}></span>${part_} ${bytes(size)}</li>`)}</ul>`}
    ${data.evict.length > 0 && html`<p class="small">Unloads ${data.evict.join(", ")}</p>`}
    ${data.evict_elsewhere_bytes > 0 && html`<p class="small">Unloads ${bytes(data.evict_elsewhere_bytes)} of other gateways' unused models</p>`}
    ${data.ways_out.length > 0 && html`<ul class="ways">${data.ways_out.map((way, index) =>
      html`<li key=${index}><code>${[way.setting].flat().map((name, place) => `${name}: ${[way.value].flat()[place]}`).join(", ")}</code>
        – needs ${bytes(way.needs_bytes)} on ${way.device}${way.evict.length ? `, unloads ${way.evict.join(", ")}` : ""}</li>`)}</ul>`}
  </section>`;
}
