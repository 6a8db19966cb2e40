/** Speech, with a player and a download. */
import { api } from "../../api.js";
import { seconds } from "../../format.js";
import { html, useEffect, useState } from "../../html.js";
import { Icon } from "../../ui/icons.js";
import { Button, Card, Empty, Field } from "../../ui/parts.js";
import { ModelChoice, SameCall, Slider, asCurl, blobOf, given, pythonArguments, pythonClient } from "./parts.js";

const PATH = "api/v1/inference/text-to-speech";
const OPENAI = "v1/audio/speech";
const TYPES = { mp3: "audio/mpeg", wav: "audio/wav", flac: "audio/flac", ogg: "audio/ogg" };

export function Speech({ models }) {
  const [model, setModel] = useState(models[0].model_id);
  const known = models.find((each) => each.model_id === model) ?? models[0];
  const voices = known.voices ?? [];
  const [text, setText] = useState("Good morning. This machine can speak.");
  const [voice, setVoice] = useState("");
  const [format, setFormat] = useState("mp3");
  const [speed, setSpeed] = useState(1);
  const [state, setState] = useState({});
  const [stop, setStop] = useState(null);
  const hasSpeed = "speed" in known.supported_parameters;
  const body = given({ model, text, voice, format, speed: hasSpeed && speed !== 1 ? speed : null });
  useEffect(() => () => stop?.abort(), [stop]);
  const speak = async () => {
    const control = new AbortController();
    const began = performance.now();
    setStop(control);
    setState({ phase: "on its way" });
    try {
      const { result } = await api.post(PATH, body, control.signal);
      const src = URL.createObjectURL(blobOf(result.audio, TYPES[result.format]));
      setState({ src, format: result.format, duration: result.duration, took: (performance.now() - began) / 1000 });
    } catch (error) {
      setState({ error: error.name === "AbortError" ? null : error.message });
    } finally {
      setStop(null);
    }
  };
  const submit = (event) => {
    event.preventDefault();
    if (!stop && text.trim()) speak();
  };
  const openai = { model, input: text, voice: voice || "alloy", response_format: format === "ogg" ? "opus" : format };
  return html`<div class="play">
    <section class="card" aria-label="Speech"><div class="card-body form">
      <form class="form" onSubmit=${submit}>
        <${Field} id="speech-text" label="Text"><textarea id="speech-text" class="area" rows="5" value=${text} onInput=${(event) => setText(event.target.value)}></textarea><//>
        <div class="buttons">
          <button class="button first" type="submit" disabled=${stop !== null || !text.trim()}><${Icon} name="play" />Speak</button>
          ${stop && html`<${Button} icon="stop" onClick=${() => stop.abort()}>Stop<//>`}
          <span class="quiet small" role="status">${state.phase ?? (state.took ? `${seconds(state.duration)} of sound in ${seconds(state.took)}` : "")}</span></div>
      </form>
      ${state.error && html`<p class="note bad" role="alert"><${Icon} name="warn" />${state.error}</p>`}
      ${state.src ? html`<audio class="player" controls autoplay src=${state.src}></audio>
          <p><a class="button" href=${state.src} download=${`speech.${state.format}`}><${Icon} name="pull" />Download</a></p>`
        : !state.phase && html`<${Empty} icon="mic" title="No sound yet" />`}
      ${state.phase && html`<span class="skeleton" style=${{ height: "40px" }}></span>`}
    </div></section>
    <div class="form">
      <${Card} title="Parameters"><div class="form">
        <${ModelChoice} models=${models} value=${model} onChange=${setModel} />
        <${Field} id="speech-voice" label="Voice"><select id="speech-voice" class="select" value=${voice} onChange=${(event) => setVoice(event.target.value)}>
          <option value="">the model's own</option>
          ${voices.map((each) => html`<option key=${each.id} value=${each.id}>${each.id}${each.language ? ` (${each.language})` : ""}</option>`)}</select><//>
        <${Field} id="speech-format" label="Format"><select id="speech-format" class="select" value=${format} onChange=${(event) => setFormat(event.target.value)}>
          ${Object.keys(TYPES).map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select><//>
        ${hasSpeed && html`<${Slider} id="speech-speed" label="Speed" min=${0.25} max=${4} step=${0.05} value=${speed} onChange=${setSpeed} />`}
      </div><//>
      <${SameCall} curl=${asCurl(OPENAI, openai, `-o speech.${format} `)}
        code=${`${pythonClient()}\nwith client.audio.speech.with_streaming_response.create(\n${pythonArguments(openai)}) as answer:\n    answer.stream_to_file("speech.${format}")`} />
    </div>
  </div>`;
}
