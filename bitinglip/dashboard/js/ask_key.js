/**
 * Asks for the key once more, for what a session's token may not do: tokens live in the tab's
 * storage, so the server lets none of them make keys. A key that stays in memory is not asked for.
 */
import { html } from "./html.js";
import { asksForKey, keptKey } from "./session.js";
import { createStore, useStore } from "./store.js";
import { Dialog } from "./ui/dialog.js";
import { Button, Field } from "./ui/parts.js";

const question = createStore(null);

/**
 * Return a key to send; undefined where the server asks for none. Throws an AbortError if the user
 * gives none.
 * @param {string} why
 * @returns {Promise<string | undefined>}
 */
export async function askKey(why) {
  if (!asksForKey) return undefined;
  const key = keptKey() ?? (await new Promise((resolve) => question.set({ why, resolve })));
  if (!key) throw new DOMException("No key was given.", "AbortError");
  return key;
}

export function KeyQuestion() {
  const asked = useStore(question);
  if (asked === null) return null;
  const answer = (key) => {
    question.set(null);
    asked.resolve(key);
  };
  const submit = (event) => {
    event.preventDefault();
    answer(event.target.elements.key.value.trim());
  };
  return html`<${Dialog} title="Your key, once more" onClose=${() => answer("")} foot=${html`
      <${Button} onClick=${() => answer("")}>Cancel<//><button class="button first" type="submit" form="ask-key">Go on</button>`}>
    <form id="ask-key" class="form" onSubmit=${submit}>
      <p class="quiet">${asked.why}</p>
      <${Field} id="asked-key" label="API key"><input id="asked-key" name="key" class="input" type="password" required autocomplete="off" spellcheck="false" data-first /><//>
    </form>
  <//>`;
}
