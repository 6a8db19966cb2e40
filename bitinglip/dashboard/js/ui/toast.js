/** Short messages at the edge of the page, read out by screen readers. */
import { html } from "../html.js";
import { createStore, useStore } from "../store.js";
import { Icon } from "./icons.js";

const LIFETIME = 7000; // milliseconds
const toasts = createStore([]);
let last = 0;

/** @param {string} text @param {"ok" | "bad"} [kind] */
export function tell(text, kind = "ok") {
  last += 1;
  const id = last;
  toasts.set([...toasts.get().slice(-3), { id, text, kind }]);
  setTimeout(() => drop(id), LIFETIME);
}

/** Tell of an error, unless it is only that the user has stopped something. @param {Error} error */
export function failed(error) {
  if (error.name === "AbortError" || error.status === 401) return;
  tell(error.message, "bad");
}

const drop = (id) => toasts.set(toasts.get().filter((each) => each.id !== id));

export function Toasts() {
  return html`<div class="toasts" role="status" aria-live="polite">
    ${useStore(toasts).map((each) => html`<div key=${each.id} class=${`toast ${each.kind}`}>
      <${Icon} name=${each.kind === "bad" ? "warn" : "check"} />
      <span class="grow">${each.text}</span>
      <button class="button plain tiny icon" aria-label="Dismiss" onClick=${() => drop(each.id)}>
        <${Icon} name="close" /></button>
    </div>`)}
  </div>`;
}
