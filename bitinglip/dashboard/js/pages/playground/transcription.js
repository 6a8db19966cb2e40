/** Transcription of a file, or of what the microphone hears. */
import { api } from "../../api.js";
import { bytes, seconds } from "../../format.js";
import { html, useEffect, useRef, useState } from "../../html.js";
import { Icon } from "../../ui/icons.js";
import { Button, Card, Code, Empty, Field } from "../../ui/parts.js";
import { failed } from "../../ui/toast.js";
import { ModelChoice, SameCall, given, pythonArguments, pythonClient } from "./parts.js";

const PATH = "v1/audio/transcriptions";

export function Transcription({ models }) {
  const [model, setModel] = useState(models[0].model_id);
  const [language, setLanguage] = useState("");
  const [file, setFile] = useState(null);
  const [state, setState] = useState({});
  const [stop, setStop] = useState(null);
  useEffect(() => () => stop?.abort(), [stop]);
  const fields = given({ model, language: language.trim() });
  const send = async () => {
    const control = new AbortController();
    const began = performance.now();
    const form = new FormData();
    for (const [name, value] of Object.entries({ ...fields, response_format: "verbose_json" })) form.set(name, value);
    form.set("file", file, file.name ?? "recording.webm");
    setStop(control);
    setState({ busy: true });
    try {
      const told = await api.form(PATH, form, control.signal);
      setState({ ...told, took: (performance.now() - began) / 1000 });
    } catch (error) {
      setState({ error: error.name === "AbortError" ? null : error.message });
    } finally {
      setStop(null);
    }
  };
  const name = file?.name ?? "recording.webm";
  const curl = `curl ${new URL(PATH, document.baseURI.split("#")[0]).href} \\\n  -H "Authorization: Bearer $BITINGLIP_API_KEY" \\\n`
    + `${Object.entries(fields).map(([key, value]) => `  -F ${key}=${value} \\\n`).join("")}  -F file=@${name}`;
  return html`<div class="play">
    <section class="card" aria-label="Transcription"><div class="card-body form">
      <div class="pair">
        <${Field} id="sound-file" label="A sound file"><input id="sound-file" class="input file" type="file" accept="audio/*,video/*" onChange=${(event) => setFile(event.target.files[0] ?? null)} /><//>
        <div class="field"><span class="label">Or speak</span><${Recorder} onDone=${setFile} /></div>
      </div>
      ${file && html`<p class="small quiet">${name}, ${bytes(file.size)}</p>`}
      <div class="buttons">
        <${Button} kind="first" icon="play" disabled=${!file || stop !== null} onClick=${() => void send()}>Transcribe<//>
        ${stop && html`<${Button} icon="stop" onClick=${() => stop.abort()}>Stop<//>`}
        <span class="quiet small" role="status">${state.took ? `${seconds(state.duration)} of ${state.language ?? "sound"} in ${seconds(state.took)}` : ""}</span></div>
      ${state.error && html`<p class="note bad" role="alert"><${Icon} name="warn" />${state.error}</p>`}
      ${state.busy && html`<span class="skeleton" style=${{ height: "60px" }}></span>`}
      ${state.text !== undefined ? (state.text.trim() ? html`<${Code} text=${state.text.trim()} label="Copy the text" />` : html`<${Empty} icon="mic" title="No speech was heard" />`)
        : !state.busy && html`<${Empty} icon="mic" title="No text yet" text="Choose a file, or record one." />`}
    </div></section>
    <div class="form">
      <${Card} title="Parameters"><div class="form">
        <${ModelChoice} models=${models} value=${model} onChange=${setModel} />
        <${Field} id="sound-language" label="Language" hint="Left out, it is found out."><input id="sound-language" class="input" placeholder="en, de, fr …" value=${language} onInput=${(event) => setLanguage(event.target.value)} /><//>
      </div><//>
      <${SameCall} curl=${curl} code=${`${pythonClient()}\nwith open("${name}", "rb") as file:\n    answer = client.audio.transcriptions.create(\n${pythonArguments(fields).replaceAll(/^/gm, "    ").trimEnd()}\n        file=file,\n    )\nprint(answer.text)`} />
    </div>
  </div>`;
}

function Recorder({ onDone }) {
  const [recorder, setRecorder] = useState(null);
  const [since, setSince] = useState(0);
  const held = useRef(null);
  useEffect(() => () => held.current?.stream.getTracks().forEach((track) => track.stop()), []);
  useEffect(() => {
    if (!recorder) return undefined;
    const timer = setInterval(() => setSince((before) => before + 1), 1000);
    return () => clearInterval(timer);
  }, [recorder]);
  const begin = async () => {
    if (!navigator.mediaDevices) {
      failed(new Error("The browser gives the microphone to pages over HTTPS or from this machine only."));
      return;
    }
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const made = new MediaRecorder(stream);
    const chunks = [];
    made.addEventListener("dataavailable", (event) => chunks.push(event.data));
    made.addEventListener("stop", () => {
      stream.getTracks().forEach((track) => track.stop());
      const blob = new Blob(chunks, { type: made.mimeType });
      onDone(new File([blob], made.mimeType.includes("mp4") ? "recording.mp4" : "recording.webm", { type: made.mimeType }));
      setRecorder(null);
    });
    held.current = made;
    made.start();
    setSince(0);
    setRecorder(made);
  };
  if (recorder) return html`<${Button} kind="danger" icon="stop" onClick=${() => recorder.stop()}>Stop after ${seconds(since)}<//>`;
  return html`<${Button} icon="mic" onClick=${begin}>Record<//>`;
}
