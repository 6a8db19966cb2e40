/** A new secret, which is shown this once; and the form that gives a key a new one. */
import { api } from "../../api.js";
import { moment } from "../../format.js";
import { html, useState } from "../../html.js";
import { askKey } from "../../ask_key.js";
import { Dialog } from "../../ui/dialog.js";
import { Icon } from "../../ui/icons.js";
import { Button, Field } from "../../ui/parts.js";
import { tell } from "../../ui/toast.js";

/** @param {{made: any, onClose: () => void}} props */
export function Secret({ made, onClose }) {
  const copy = async () => {
    await navigator.clipboard.writeText(made.key);
    tell("The key is in the clipboard.");
  };
  return html`<${Dialog} title=${`The key ${made.name}`} fixed onClose=${onClose}
    foot=${html`<${Button} kind="first" onClick=${onClose}>I have kept it<//>`}>
    <p class="note warn"><${Icon} name="warn" />Copy it now: the server keeps a digest only and cannot show it again.</p>
    <div class="secret"><code>${made.key}</code><${Button} icon="copy" label="Copy the key" data-first onClick=${copy} /></div>
    ${made.grace_until && html`<p class="quiet small">The old secret works until ${moment(made.grace_until)}.</p>`}
  <//>`;
}

const GRACES = [["0s", "at once"], ["1h", "in an hour"], ["24h", "in a day"], ["7d", "in a week"]];

/** @param {{present: any, onClose: () => void, onDone: (made: any) => void}} props */
export function Rotate({ present, onClose, onDone }) {
  const [grace, setGrace] = useState("24h");
  const rotate = async () => {
    const key = await askKey("Keys are rotated with a key, not with a session.");
    onDone(await api.post(`api/v1/keys/${present.id}/rotate`, { grace }, undefined, key));
  };
  return html`<${Dialog} title=${`Rotate ${present.name}`} onClose=${onClose} foot=${html`<${Button} onClick=${onClose}>Cancel<//>
      <${Button} kind="first" icon="again" onClick=${rotate}>Rotate<//>`}>
    <p class="quiet">The key gets a new secret. Programs that have the old one need the new one before that ends.</p>
    <${Field} id="grace" label="The old secret ends"><select id="grace" class="select" data-first value=${grace} onChange=${(event) => setGrace(event.target.value)}>
      ${GRACES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>
  <//>`;
}
