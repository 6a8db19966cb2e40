/** Chat: answers come as they are made, and stop when asked to. */
import { api } from "../../api.js";
import { number, seconds } from "../../format.js";
import { html, useEffect, useRef, useState } from "../../html.js";
import { createStore, useStore } from "../../store.js";
import { Icon } from "../../ui/icons.js";
import { Button, Card, Empty, Field } from "../../ui/parts.js";
import { Markdown } from "./markdown.js";
import { ModelChoice, SameCall, Slider, Whole, asCurl, given, python, pythonArguments, pythonClient } from "./parts.js";

const DRAW_EVERY = 60; // milliseconds
const PATH = "v1/chat/completions";

const SCHEMA = JSON.stringify({ type: "object", properties: { answer: { type: "string" }, sure: { type: "boolean" } }, required: ["answer", "sure"], additionalProperties: false }, null, 2);
const TOOLS = JSON.stringify([{ type: "function", function: { name: "weather", description: "The weather in a town now", parameters: { type: "object", properties: { town: { enum: ["Lima", "Oslo", "Tokyo"] } }, required: ["town"], additionalProperties: false } } }], null, 2);

/** The conversation stays while other pages are looked at. */
const turns = createStore([]);
const options = createStore({ system: "", max_tokens: 512, temperature: 0.7, top_p: 0.9, seed: null, schema: "", tools: "", tool_choice: "auto" });

export function Chat({ models }) {
  const [model, setModel] = useState((models.find(({ engine }) => engine !== "fake") ?? models[0]).model_id);
  const all = useStore(turns);
  const chosen = useStore(options);
  const [said, setSaid] = useState("");
  const [stop, setStop] = useState(null);
  const [wrong, setWrong] = useState(null);
  const body = (added) => requestOf(model, chosen, messagesOf([...all, ...added]));
  /** Send what is added to the conversation, and write down the answer. */
  const ask = async (added) => {
    let request;
    try {
      request = body(added);
    } catch (error) {
      setWrong(error.message);
      return;
    }
    setWrong(null);
    setSaid("");
    const control = new AbortController();
    setStop(control);
    turns.set([...all, ...added, { role: "assistant", text: "", model }]);
    await answer({ ...request, stream: true, stream_options: { include_usage: true } }, control.signal);
    setStop(null);
  };
  const send = async () => {
    const text = said.trim();
    if (text && !stop) await ask([{ role: "user", text }]);
  };
  const called = stop ? [] : (all.at(-1)?.calls ?? []);
  useEffect(() => () => stop?.abort(), [stop]);
  let shown;
  try {
    shown = body([{ role: "user", text: said.trim() || "Hello!" }]);
  } catch {
    shown = requestOf(model, { ...chosen, schema: "", tools: "" }, [{ role: "user", content: "Hello!" }]);
  }
  return html`<div class="play">
    <section class="card talk" aria-label="Conversation">
      <${Turns} all=${all} busy=${stop !== null} />
      ${wrong && html`<p class="note bad" role="alert"><${Icon} name="warn" />${wrong}</p>`}
      ${called.length > 0 && html`<${Results} key=${all.length} calls=${called} ask=${ask} />`}
      <${Say} said=${said} setSaid=${setSaid} send=${send} stop=${stop} />
    </section>
    <div class="form">
      <${Card} title="Parameters" tools=${html`<${Button} kind="plain tiny" disabled=${!all.length || stop !== null} onClick=${() => turns.set([])}>Clear chat<//>`}>
        <${Parameters} models=${models} model=${model} setModel=${setModel} chosen=${chosen} /><//>
      <${SameCall} curl=${asCurl(PATH, shown)} code=${pythonOf(shown)} />
    </div>
  </div>`;
}

function Parameters({ models, model, setModel, chosen }) {
  const set = (name) => (value) => options.set({ ...options.get(), [name]: value });
  const typed = (name) => (event) => set(name)(event.target.value);
  return html`<div class="form">
    <${ModelChoice} models=${models} value=${model} onChange=${setModel} />
    <${Field} id="chat-system" label="System prompt"><textarea id="chat-system" class="area" rows="2" value=${chosen.system} onInput=${typed("system")}></textarea><//>
    <${Slider} id="chat-temperature" label="Temperature" min=${0} max=${2} step=${0.05} value=${chosen.temperature} onChange=${set("temperature")} />
    <${Slider} id="chat-top-p" label="Top p" min=${0.05} max=${1} step=${0.05} value=${chosen.top_p} onChange=${set("top_p")} />
    <div class="pair">
      <${Whole} id="chat-max" label="Max tokens" min=${1} value=${chosen.max_tokens} onChange=${set("max_tokens")} placeholder="no limit" />
      <${Whole} id="chat-seed" label="Seed" value=${chosen.seed} onChange=${set("seed")} placeholder="random" /></div>
    <details><summary>JSON schema and tools</summary><div class="form details">
      <p class="hint">Examples: <button type="button" class="link" onClick=${() => set("schema")(SCHEMA)}>a schema</button>, <button type="button" class="link" onClick=${() => set("tools")(TOOLS)}>a tool</button></p>
      <${Field} id="chat-schema" label="Schema of the answer"><textarea id="chat-schema" class="area mono" rows="4" spellcheck="false" placeholder='{"type": "object"}' value=${chosen.schema} onInput=${typed("schema")}></textarea><//>
      <${Field} id="chat-tools" label="Tools" hint="A list of functions, as OpenAI's API takes them."><textarea id="chat-tools" class="area mono" rows="4" spellcheck="false" placeholder="[]" value=${chosen.tools} onInput=${typed("tools")}></textarea><//>
      <${Field} id="chat-tool-choice" label="Whether to call one"><select id="chat-tool-choice" class="select" value=${chosen.tool_choice} onChange=${typed("tool_choice")}>
        <option value="auto">as the model likes</option><option value="required">always</option><option value="none">never</option></select><//>
    </div></details>
  </div>`;
}

/** Fields for what the called tools gave, which is sent back to the model. */
function Results({ calls, ask }) {
  const submit = (event) => {
    event.preventDefault();
    ask(calls.map((call, index) => ({ role: "tool", id: call.id, name: call.name, text: event.target.elements[`result-${index}`].value })));
  };
  return html`<form class="form results" onSubmit=${submit}>
    ${calls.map((call, index) => html`<${Field} key=${index} id=${`result-${index}`} label=${`Result of ${call.name}`}>
      <input id=${`result-${index}`} name=${`result-${index}`} class="input mono" required spellcheck="false" placeholder='{"degrees": 21}' /><//>`)}
    <div class="buttons"><button class="button" type="submit"><${Icon} name="send" />Send the results</button></div>
  </form>`;
}

function Say({ said, setSaid, send, stop }) {
  const press = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return html`<div class="say">
    <label class="unseen" for="chat-said">Message</label>
    <textarea id="chat-said" class="area" rows="1" placeholder="Ask something" title="Enter sends, Shift+Enter makes a line"
      value=${said} onInput=${(event) => setSaid(event.target.value)} onKeyDown=${press}></textarea>
    ${stop ? html`<${Button} icon="stop" onClick=${() => stop.abort()}>Stop<//>`
      : html`<${Button} kind="first" icon="send" disabled=${!said.trim()} onClick=${() => void send()}>Send<//>`}
  </div>`;
}

function Turns({ all, busy }) {
  const list = useRef(null);
  useEffect(() => {
    list.current?.scrollTo({ top: list.current.scrollHeight });
  }, [all]);
  if (!all.length) return html`<div class="turns"><${Empty} icon="playground" title="Say something" text="The first message loads the model, if it is not loaded yet." /></div>`;
  return html`<div class="turns" ref=${list} role="log" aria-label="Messages" aria-busy=${String(busy)} tabindex="0">
    ${all.map((turn, index) => html`<${Turn} key=${index} turn=${turn} busy=${busy && index === all.length - 1} />`)}</div>`;
}

const WHO = { user: "You", tool: "Result of" };

function Turn({ turn, busy }) {
  return html`<article class=${`turn ${turn.role}`}>
    <span class="who">${WHO[turn.role] ?? turn.model}${turn.role === "tool" ? ` ${turn.name}` : ""}</span>
    ${turn.thoughts && html`<details open=${busy && !turn.text}><summary>Thoughts</summary><div class="thoughts small">${turn.thoughts}</div></details>`}
    ${turn.role !== "assistant" ? html`<div class="text">${turn.text}</div>` : html`<${Markdown} text=${turn.text} />`}
    ${turn.calls?.map((call, index) => html`<pre key=${index} class="call mono">${call.name}(${call.text})</pre>`)}
    ${busy && !turn.text && !turn.calls?.length && html`<span class="skeleton" style=${{ width: "9em" }} role="status" aria-label="The answer is on its way"></span>`}
    ${turn.error && html`<p class="note bad" role="alert"><${Icon} name="warn" />${turn.error}</p>`}
    ${turn.figures && html`<span class="figures">${turn.figures}</span>`}
  </article>`;
}

/** Send the request and write what comes into the last turn. */
async function answer(request, signal) {
  const began = performance.now();
  const made = { ...turns.get().at(-1), calls: [] };
  let first = 0;
  let drawn = 0;
  const draw = () => {
    drawn = performance.now();
    turns.set([...turns.get().slice(0, -1), { ...made }]);
  };
  const onEvent = (_name, data) => {
    if (data.error) throw new Error(data.error.message);
    const delta = data.choices?.[0]?.delta;
    if (delta?.content || delta?.reasoning_content) first ||= performance.now();
    made.text += delta?.content ?? "";
    if (delta?.reasoning_content) made.thoughts = (made.thoughts ?? "") + delta.reasoning_content;
    for (const call of delta?.tool_calls ?? []) addCall(made.calls, call);
    if (data.choices?.[0]?.finish_reason) made.end = data.choices[0].finish_reason;
    if (data.usage) made.usage = data.usage;
    if (performance.now() - drawn > DRAW_EVERY) draw();
  };
  try {
    await api.stream(PATH, { body: request, signal, onEvent });
  } catch (error) {
    if (error.name === "AbortError") made.end = "stopped";
    else made.error = error.message;
  }
  made.figures = figuresOf(made, began, first);
  draw();
}

function addCall(calls, delta) {
  const call = (calls[delta.index] ??= { id: delta.id, name: "", text: "" });
  call.name = delta.function?.name ?? call.name;
  call.text += delta.function?.arguments ?? "";
}

function figuresOf({ usage, end, error }, began, first) {
  if (error || !first) return end === "stopped" ? "stopped" : "";
  const took = (performance.now() - first) / 1000;
  const tokens = usage?.completion_tokens;
  return [
    tokens && `${tokens} tokens`,
    tokens > 1 && took > 0 && `${number((tokens - 1) / took)}/s`,
    `first after ${seconds((first - began) / 1000)}`,
    end && end !== "stop" && (end === "length" ? "cut off at the limit" : end),
  ].filter(Boolean).join(" · ");
}

/** The conversation as the API takes it. Calls that were never answered are left out. */
function messagesOf(all) {
  return all.filter(({ error }) => !error).flatMap((turn, index, list) => {
    if (turn.role === "tool") return [{ role: "tool", tool_call_id: turn.id, content: turn.text }];
    if (turn.calls?.length && list[index + 1]?.role === "tool") {
      const calls = turn.calls.map(({ id, name, text }) => ({ id, type: "function", function: { name, arguments: text } }));
      return [{ role: "assistant", content: turn.text || null, tool_calls: calls }];
    }
    return turn.text ? [{ role: turn.role, content: turn.text }] : [];
  });
}

/** The body of the request. Throws an error that names the field with wrong JSON. */
function requestOf(model, chosen, messages) {
  const { system, schema, tools, tool_choice: choice, ...numbers } = chosen;
  const format = schema.trim() && { type: "json_schema", json_schema: { name: "answer", schema: parsed(schema, "The schema") } };
  return given({
    model,
    messages: [...(system.trim() ? [{ role: "system", content: system.trim() }] : []), ...messages],
    ...numbers,
    response_format: format || null,
    tools: tools.trim() ? parsed(tools, "The list of tools") : null,
    tool_choice: tools.trim() && choice !== "auto" ? choice : null,
  });
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is no JSON: ${error.message}`);
  }
}

function pythonOf({ messages, ...fields }) {
  return `${pythonClient()}\nstream = client.chat.completions.create(\n${pythonArguments(fields)}    messages=${python(messages, 1)},\n`
    + "    stream=True,\n)\nfor chunk in stream:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or \"\", end=\"\", flush=True)";
}
