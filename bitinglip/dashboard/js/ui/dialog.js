/** Dialogs on the browser's own element, which keeps the focus inside and gives it back. */
import { html, useEffect, useRef, useState } from "../html.js";
import { createStore, useStore } from "../store.js";
import { Button } from "./parts.js";

/** @param {{title: string, onClose: () => void, foot?: unknown, wide?: boolean, fixed?: boolean}} props */
export function Dialog({ title, onClose, foot, wide, fixed, children }) {
  const element = useRef(null);
  useEffect(() => {
    const dialog = element.current;
    dialog.showModal();
    dialog.querySelector("[data-first]")?.focus();
    return () => dialog.close();
  }, []);
  const cancel = (event) => {
    event.preventDefault();
    if (!fixed) onClose();
  };
  return html`<dialog ref=${element} class=${`dialog ${wide ? "wide" : ""}`} aria-label=${title}
    onCancel=${cancel}>
    <div class="dialog-head"><h2>${title}</h2>
      ${!fixed && html`<${Button} kind="plain" icon="close" label="Close" onClick=${onClose} />`}</div>
    <div class="dialog-body">${children}</div>
    ${foot && html`<div class="dialog-foot">${foot}</div>`}
  </dialog>`;
}

const question = createStore(null);

/**
 * Ask before something that cannot be undone.
 * @param {{title: string, text: string, action: string, danger?: boolean, type?: string}} asked
 *   ``type``: a word that must be typed first
 * @returns {Promise<boolean>}
 */
export function confirm(asked) {
  return new Promise((resolve) => question.set({ ...asked, resolve }));
}

export function Confirmation() {
  const asked = useStore(question);
  const [typed, setTyped] = useState("");
  if (asked === null) return null;
  const answer = (yes) => {
    question.set(null);
    setTyped("");
    asked.resolve(yes);
  };
  const ready = !asked.type || typed === asked.type;
  return html`<${Dialog} title=${asked.title} onClose=${() => answer(false)}
    foot=${html`<${Button} data-first=${asked.type ? undefined : true} onClick=${() => answer(false)}>Cancel<//>
      <${Button} kind=${`first ${asked.danger ? "danger" : ""}`} disabled=${!ready}
        onClick=${() => answer(true)}>${asked.action}<//>`}>
    <p>${asked.text}</p>
    ${asked.type && html`<div class="field">
      <label for="confirm-word">Type <span class="mono">${asked.type}</span> to go on</label>
      <input id="confirm-word" class="input" data-first autocomplete="off" value=${typed}
        onInput=${(event) => setTyped(event.target.value)}
        onKeyDown=${(event) => event.key === "Enter" && ready && answer(true)} /></div>`}
  <//>`;
}
