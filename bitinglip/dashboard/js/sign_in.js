/** Signing in with a key, at first and again once the session has ended. */
import { html, useState } from "./html.js";
import { signIn, signOut } from "./session.js";
import { Dialog } from "./ui/dialog.js";
import { Icon } from "./ui/icons.js";

const icon = document.querySelector('link[rel="icon"]').getAttribute("href");

function SignInForm() {
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const { key, stay } = event.target.elements;
    if (!key.value.trim()) {
      setFailure("Enter a key.");
      key.focus();
      return;
    }
    setBusy(true);
    const problem = await signIn(key.value.trim(), stay.checked);
    setBusy(false);
    setFailure(problem);
    if (problem) key.select();
  };
  return html`<form class="form" onSubmit=${submit}>
    <div class="field">
      <label for="key">API key</label>
      <input id="key" name="key" class="input" type="password" autocomplete="off" spellcheck="false"
        autofocus data-first placeholder="blk_…" aria-invalid=${failure ? "true" : undefined}
        aria-describedby=${failure ? "key-failure" : "key-hint"} />
      <p class="hint" id="key-hint">The first start wrote one into <code>admin.key</code> of the
        server's home.</p>
    </div>
    <label class="check"><input type="checkbox" name="stay" checked />
      <span>Stay signed in while this page is open
        <span class="quiet small"> – the key is kept in memory only, and asked for again after a reload
        once the session has ended</span></span></label>
    ${failure && html`<p class="note bad" id="key-failure" role="alert"><${Icon} name="warn" />${failure}</p>`}
    <button class="button first" type="submit" disabled=${busy}>${busy ? "Signing in …" : "Sign in"}</button>
  </form>`;
}

export function SignInPage() {
  return html`<main class="sign-in"><section class="card" aria-label="Sign in">
    <div class="brand"><img src=${icon} alt="" /><h1>BitingLip</h1></div>
    <${SignInForm} />
  </section></main>`;
}

/** Lies above the page, which stays as it is. */
export function SignInAgain() {
  return html`<${Dialog} title="Your session has ended" fixed onClose=${() => undefined}>
    <p class="quiet">Sign in again to go on where you were.</p>
    <${SignInForm} />
    <button class="button plain" type="button" onClick=${signOut}>Leave this page</button>
  <//>`;
}
