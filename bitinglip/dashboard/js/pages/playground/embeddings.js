/** Embeddings: how near texts are to each other. */
import { api } from "../../api.js";
import { html, useState } from "../../html.js";
import { Icon } from "../../ui/icons.js";
import { Card, Empty, Field } from "../../ui/parts.js";
import { ModelChoice, SameCall, asCurl, pythonArguments, pythonClient } from "./parts.js";

const PATH = "v1/embeddings";
const MOST = 12; // texts that are compared

export function Embeddings({ models }) {
  const [model, setModel] = useState(models[0].model_id);
  const [text, setText] = useState("a cat sleeps\na dog sleeps\nthe price of oil");
  const [state, setState] = useState({});
  const [busy, setBusy] = useState(false);
  const input = text.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, MOST);
  const body = { model, input };
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const { data, usage } = await api.post(PATH, body);
      setState({ texts: input, vectors: data.map((each) => each.embedding), usage });
    } catch (error) {
      setState({ error: error.message });
    } finally {
      setBusy(false);
    }
  };
  return html`<div class="play">
    <section class="card" aria-label="Embeddings"><div class="card-body form">
      <form class="form" onSubmit=${submit}>
        <${Field} id="embed-text" label="Texts, one a line" hint=${`The first ${MOST} are compared with each other.`}>
          <textarea id="embed-text" class="area" rows="4" value=${text} onInput=${(event) => setText(event.target.value)}></textarea><//>
        <div class="buttons"><button class="button first" type="submit" disabled=${busy || !input.length}><${Icon} name="play" />Embed</button>
          <span class="quiet small" role="status">${state.vectors ? `${state.vectors[0].length} dimensions, ${state.usage.total_tokens} tokens` : ""}</span></div>
      </form>
      ${state.error && html`<p class="note bad" role="alert"><${Icon} name="warn" />${state.error}</p>`}
      ${state.vectors ? html`<${Nearness} ...${state} />` : html`<${Empty} icon="fit" title="No vectors yet" />`}
    </div></section>
    <div class="form">
      <${Card} title="Parameters"><${ModelChoice} models=${models} value=${model} onChange=${setModel} /><//>
      <${SameCall} curl=${asCurl(PATH, body)} code=${`${pythonClient()}\nanswer = client.embeddings.create(\n${pythonArguments(body)})\nvectors = [each.embedding for each in answer.data]`} />
    </div>
  </div>`;
}

/** The cosine of each pair, darker where they are nearer. */
function Nearness({ texts, vectors }) {
  return html`<div class="table-wrap"><table class="heat">
    <caption class="unseen">Cosine of each pair of texts</caption>
    <thead><tr><td></td>${texts.map((_, index) => html`<th key=${index} scope="col">${index + 1}</th>`)}</tr></thead>
    <tbody>${texts.map((text, row) => html`<tr key=${row}><th scope="row"><span class="quiet">${row + 1}</span> ${text.slice(0, 60)}</th>
      ${vectors.map((other, column) => {
        const near = cosine(vectors[row], other);
        return html`<td key=${column} style=${{ background: `color-mix(in srgb, var(--accent) ${Math.round(Math.max(0, near) * 45)}%, transparent)` }}>${near.toFixed(2)}</td>`;
      })}</tr>`)}</tbody></table></div>
    <details><summary>The first vector</summary><p class="vector">${vectors[0].slice(0, 64).map((each) => each.toFixed(4)).join(", ")}${vectors[0].length > 64 ? " …" : ""}</p></details>`;
}

function cosine(left, right) {
  const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
  return dot(left, right) / (Math.sqrt(dot(left, left) * dot(right, right)) || 1);
}
