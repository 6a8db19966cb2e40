/** Small parts that all pages use: buttons, cards, fields, badges and the designed states. */
import { html, useState } from "../html.js";
import { Icon } from "./icons.js";
import { failed } from "./toast.js";

/**
 * A button; while the promise of its handler runs it is disabled, and a failure is told.
 * @param {{onClick?: (event: Event) => unknown, icon?: string, kind?: string, label?: string}} props
 */
export function Button({ onClick, icon, kind = "", label, children, disabled, ...rest }) {
  const [busy, setBusy] = useState(false);
  const click = async (event) => {
    const outcome = onClick?.(event);
    if (!(outcome instanceof Promise)) return;
    setBusy(true);
    try {
      await outcome;
    } catch (error) {
      failed(error);
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" class=${`button ${kind} ${children ? "" : "icon"}`}
    aria-label=${label} title=${children ? undefined : label} onClick=${click}
    disabled=${disabled || busy} aria-busy=${busy} ...${rest}>
    ${icon && html`<${Icon} name=${icon} />`}${children}
  </button>`;
}

/** The head of a page: its name, a sentence, and tools at the right. */
export function PageHead({ title, children }) {
  return html`<header class="page-head"><h1 class="grow">${title}</h1>${children}</header>`;
}

/** A card with an optional head. @param {{title?: string, tools?: unknown, flush?: boolean}} props */
export function Card({ title, tools, flush, children, ...rest }) {
  return html`<section class=${`card ${rest.class ?? ""}`} aria-label=${title}>
    ${title && html`<div class="card-head"><h2>${title}</h2>${tools}</div>`}
    <div class=${`card-body ${flush ? "flush" : ""}`}>${children}</div>
  </section>`;
}

const TONES = {
  ready: "ok", well: "ok", completed: "ok", running: "info", busy: "info", loading: "info",
  starting: "info", downloading: "info", queued: "plain", error: "bad", failed: "bad", lost: "bad",
  crashed: "bad", failing: "bad", refused: "bad", joining: "info", doubtful: "warn", draining: "warn", stopping: "warn", cancelled: "plain",
  revoked: "plain", expired: "warn",
};

/** A state in a word and a colour. @param {{state: string, tone?: string}} props */
export function Badge({ state, tone }) {
  return html`<span class=${`badge ${tone ?? TONES[state] ?? ""}`}>${state}</span>`;
}

/** A labelled control; ``children`` is called with the id that the label is for. */
export function Field({ label, hint, id, children }) {
  return html`<div class="field">
    <label for=${id}>${label}</label>${children}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
  </div>`;
}

/** Nothing is there yet, and what to do about it. */
export function Empty({ icon = "info", title, text, children }) {
  return html`<div class="state"><${Icon} name=${icon} /><strong>${title}</strong>
    ${text && html`<p>${text}</p>`}${children && html`<div class="buttons">${children}</div>`}</div>`;
}

/** Something could not be shown. @param {{error: Error & {requestId?: string}, retry?: () => void}} props */
export function Failure({ error, retry }) {
  return html`<div class="state" role="alert"><${Icon} name="warn" />
    <strong>${error.status === 403 ? "Your key does not allow this" : "This could not be loaded"}</strong>
    <p>${error.message}</p>
    ${error.requestId && html`<p class="small mono">${error.requestId}</p>`}
    ${retry && html`<div class="buttons"><${Button} icon="again" onClick=${retry}>Try again<//></div>`}
  </div>`;
}

/** Rows of grey while something loads. @param {{rows?: number}} props */
export function Loading({ rows = 4 }) {
  return html`<div class="card-body" role="status" aria-label="Loading">
    ${Array.from({ length: rows }, (_, row) => html`<p key=${row} style=${{ padding: "9px 0" }}>
      <span class="skeleton" style=${{ width: `${88 - ((row * 23) % 47)}%` }}></span></p>`)}
  </div>`;
}

/** Text that can be copied. @param {{text: string}} props */
export function Code({ text, label = "Copy" }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<div class="code"><pre tabindex="0">${text}</pre>
    <${Button} kind="tiny" icon=${copied ? "check" : "copy"} label=${copied ? "Copied" : label}
      onClick=${copy} /></div>`;
}

/** A few choices of which one is taken. */
export function Segments({ label, options, value, onChange }) {
  return html`<div class="segments" role="group" aria-label=${label}>
    ${options.map(([name, text]) => html`<button key=${name} type="button"
      aria-pressed=${String(name === value)} onClick=${() => onChange(name)}>${text}</button>`)}
  </div>`;
}
