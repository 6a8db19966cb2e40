/** Images, with a look at each step while they are made. */
import { api } from "../../api.js";
import { percent, seconds } from "../../format.js";
import { html, useEffect, useState } from "../../html.js";
import { Icon } from "../../ui/icons.js";
import { Button, Card, Empty, Field } from "../../ui/parts.js";
import { ModelChoice, SameCall, Slider, Whole, asCurl, asPython, blobOf, given } from "./parts.js";

const PATH = "api/v1/inference/image-generation";

export function Images({ models }) {
  const [model, setModel] = useState(models[0].model_id);
  const bounds = models.find((each) => each.model_id === model)?.supported_parameters ?? {};
  const [asked, setAsked] = useState({ prompt: "a small red house", negative_prompt: "", width: null, height: null, steps: null, guidance_scale: 7.5, seed: null, n: 1 });
  const [state, setState] = useState({ pictures: [] });
  const [stop, setStop] = useState(null);
  const set = (name) => (value) => setAsked((before) => ({ ...before, [name]: value }));
  const body = given({ model, ...asked });
  useEffect(() => () => stop?.abort(), [stop]);
  const make = async () => {
    const control = new AbortController();
    setStop(control);
    setState({ pictures: [], began: performance.now() });
    try {
      await api.stream(PATH, {
        body: { ...body, stream: true, preview: 1 },
        signal: control.signal,
        onEvent: (name, data) => setState((before) => after(before, name, data)),
      });
    } catch (error) {
      setState((before) => ({ ...before, phase: null, error: error.name === "AbortError" ? null : error.message }));
    } finally {
      setStop(null);
    }
  };
  const submit = (event) => {
    event.preventDefault();
    if (!stop && asked.prompt.trim()) make();
  };
  const side = (name, label) => html`<${Whole} id=${`image-${name}`} label=${label} min=${64} step=${8} max=${bounds[name]?.maximum} placeholder=${String(bounds[name]?.default ?? "")} value=${asked[name]} onChange=${set(name)} />`;
  return html`<div class="play">
    <section class="card" aria-label="Images"><div class="card-body form">
      <form class="form" onSubmit=${submit}>
        <${Field} id="image-prompt" label="Prompt"><textarea id="image-prompt" class="area" rows="2" value=${asked.prompt} onInput=${(event) => set("prompt")(event.target.value)}></textarea><//>
        <div class="buttons">
          <button class="button first" type="submit" disabled=${stop !== null || !asked.prompt.trim()}><${Icon} name="play" />Generate</button>
          ${stop && html`<${Button} icon="stop" onClick=${() => stop.abort()}>Stop<//>`}
          <span class="quiet small" role="status">${told(state)}</span></div>
      </form>
      <${Progress} state=${state} />
      ${state.error && html`<p class="note bad" role="alert"><${Icon} name="warn" />${state.error}</p>`}
      <${Pictures} state=${state} prompt=${asked.prompt} />
    </div></section>
    <div class="form">
      <${Card} title="Parameters"><div class="form">
        <${ModelChoice} models=${models} value=${model} onChange=${setModel} />
        <${Field} id="image-negative" label="Not in the picture"><input id="image-negative" class="input" value=${asked.negative_prompt} onInput=${(event) => set("negative_prompt")(event.target.value)} /><//>
        <div class="pair">${side("width", "Width")}${side("height", "Height")}</div>
        <div class="pair"><${Whole} id="image-steps" label="Steps" min=${1} max=${bounds.steps?.maximum} placeholder=${String(bounds.steps?.default ?? "")} value=${asked.steps} onChange=${set("steps")} />
          <${Whole} id="image-n" label="Images" min=${1} max=${8} value=${asked.n} onChange=${set("n")} /></div>
        <${Slider} id="image-guidance" label="Guidance" min=${0} max=${20} step=${0.5} value=${asked.guidance_scale} onChange=${set("guidance_scale")} />
        <${Whole} id="image-seed" label="Seed" placeholder="random" value=${asked.seed} onChange=${set("seed")} />
      </div><//>
      <${SameCall} curl=${asCurl(PATH, body)} code=${`${asPython(PATH, body)}\n\nimport base64\n\nfor index, image in enumerate(result["images"]):\n    with open(f"{index}.{image['format']}", "wb") as file:\n        file.write(base64.b64decode(image["b64"]))`} />
    </div>
  </div>`;
}

/** The state after one more event of the stream. */
function after(before, name, data) {
  if (name === "progress") return { ...before, phase: "step", step: data.step, steps: data.steps, preview: data.preview ?? before.preview };
  if (name === "completed") {
    const pictures = data.result.images.map((image) => ({ ...image, src: URL.createObjectURL(blobOf(image.b64, `image/${image.format}`)), b64: null }));
    return { pictures, took: (performance.now() - before.began) / 1000 };
  }
  if (name === "failed") return { ...before, phase: null, error: data.error.message };
  if (name === "cancelled") return { ...before, phase: null, error: "The task was cancelled." };
  return { ...before, phase: name, part: data.progress, position: data.position };
}

function told(state) {
  if (state.phase === "queued") return `waiting, place ${state.position}`;
  if (state.phase === "loading") return `loading the model, ${percent(state.part)}`;
  if (state.phase === "step") return `step ${state.step} of ${state.steps}`;
  if (state.phase === "started") return "started";
  return state.took ? `made in ${seconds(state.took)}` : "";
}

function Progress({ state }) {
  if (!state.phase) return null;
  const part = state.phase === "step" ? state.step / state.steps : state.phase === "loading" ? state.part : 0;
  return html`<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(part * 100)}>
    <span style=${{ width: `${part * 100}%`, minWidth: 0 }}></span></div>`;
}

function Pictures({ state, prompt }) {
  if (state.pictures.length) {
    return html`<div class="pictures">${state.pictures.map((picture, index) => html`<figure key=${picture.src}>
      <img src=${picture.src} alt=${prompt} width=${picture.width} height=${picture.height} />
      <figcaption><span>seed ${picture.seed}</span><a href=${picture.src} download=${`image-${index}.${picture.format}`}>Download</a></figcaption></figure>`)}</div>`;
  }
  if (state.preview) {
    return html`<div class="pictures"><figure><img src=${`data:image/${kind(state.preview)};base64,${state.preview}`} alt="What the picture looks like so far" />
      <figcaption>so far</figcaption></figure></div>`;
  }
  if (state.phase) return html`<span class="skeleton picture"></span>`;
  return html`<${Empty} icon="play" title="No picture yet" text="Each step is shown while the picture is made." />`;
}

/** The kind of a picture by its first bytes. */
const kind = (base64) => (base64.startsWith("/9j") ? "jpeg" : base64.startsWith("UklGR") ? "webp" : "png");
