/** Try the models: one tab a kind, each beside the same call as curl and Python. */
import { api } from "../api.js";
import { html, useEffect, useState } from "../html.js";
import { useLoaded } from "../load.js";
import { may } from "../session.js";
import { Card, Empty, Failure, Loading, PageHead } from "../ui/parts.js";
import { Chat } from "./playground/chat.js";
import { Embeddings } from "./playground/embeddings.js";
import { Images } from "./playground/images.js";
import { Speech } from "./playground/speech.js";
import { Transcription } from "./playground/transcription.js";

const TABS = [
  { name: "chat", title: "Chat", kind: "text", scope: "inference:text", Tab: Chat, lacks: "No text model" },
  { name: "images", title: "Images", kind: "image", scope: "inference:image", Tab: Images, lacks: "No image model" },
  { name: "speech", title: "Speech", kind: "speech", scope: "inference:audio", Tab: Speech, lacks: "No speech model" },
  { name: "transcription", title: "Transcription", kind: "transcription", scope: "inference:audio", Tab: Transcription, lacks: "No model that transcribes" },
  { name: "embeddings", title: "Embeddings", kind: "embedding", scope: "inference:text", Tab: Embeddings, lacks: "No embedding model" },
];

const chosen = () => location.hash.slice(2).split("/")[1];

export default function Playground() {
  const tabs = TABS.filter(({ scope }) => may(scope));
  const [name, setName] = useState(chosen() ?? tabs[0].name);
  const listed = may("models:read");
  const models = useLoaded((signal) => (listed ? api.get("api/v1/models", { limit: 500 }, signal) : Promise.resolve({ data: [] })));
  useEffect(() => {
    const follow = () => chosen() && setName(chosen());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const tab = tabs.find((each) => each.name === name) ?? tabs[0];
  const select = (next) => {
    setName(next);
    history.replaceState(null, "", `#/playground/${next}`);
  };
  return html`
    <${PageHead} title="Playground" />
    <${Tabs} tabs=${tabs} tab=${tab} select=${select} />
    <div role="tabpanel" id="play-panel" aria-labelledby=${`tab-${tab.name}`}>
      ${models.data === null
        ? html`<${Card} flush>${models.error ? html`<${Failure} error=${models.error} retry=${models.reload} />` : html`<${Loading} rows=${6} />`}<//>`
        : html`<${Panel} key=${tab.name} tab=${tab} models=${listed ? modelsOf(tab.kind, models.data.data) : UNLISTED} />`}
    </div>`;
}

/** Where the key may not read the list, the name is typed. */
const UNLISTED = [{ model_id: "", typed: true, supported_parameters: {} }];

const modelsOf = (kind, list) =>
  list.filter((each) => (each.kind ?? each.type) === kind || (kind === "text" && each.engine === "fake"));

function Panel({ tab, models }) {
  if (!models.length) {
    return html`<${Card} flush><${Empty} icon="models" title=${tab.lacks} text="The store has no model of this kind yet.">
      ${may("models:read") && html`<a class="button" href="#/models">Open models</a>`}<//><//>`;
  }
  return html`<${tab.Tab} models=${models} />`;
}

function Tabs({ tabs, tab, select }) {
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    select(next.name);
    document.getElementById(`tab-${next.name}`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label="Kinds" onKeyDown=${move}>
    ${tabs.map((each) => html`<button key=${each.name} type="button" role="tab" id=${`tab-${each.name}`}
      aria-selected=${String(each === tab)} aria-controls="play-panel" tabindex=${each === tab ? 0 : -1}
      onClick=${() => select(each.name)}>${each.title}</button>`)}
  </div>`;
}
