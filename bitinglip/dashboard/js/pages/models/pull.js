/** The form that asks for a model of the hub. */
import { startDownload } from "../../downloads.js";
import { html, useState } from "../../html.js";
import { Dialog } from "../../ui/dialog.js";
import { Icon } from "../../ui/icons.js";
import { Button, Field } from "../../ui/parts.js";

/** @param {{onClose: () => void}} props */
export function Pull({ onClose }) {
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const { repo, revision, name, priority } = event.target.elements;
    const wanted = { model_name: repo.value.trim(), priority: priority.value };
    if (revision.value.trim()) wanted.revision = revision.value.trim();
    if (name.value.trim()) wanted.name = name.value.trim();
    setBusy(true);
    try {
      await startDownload(wanted);
      onClose();
    } catch (error) {
      setFailure(error);
      setBusy(false);
      repo.focus();
    }
  };
  return html`<${Dialog} title="Pull a model" onClose=${onClose} foot=${html`
      <${Button} onClick=${onClose}>Cancel<//>
      <button class="button first" type="submit" form="pull" disabled=${busy}><${Icon} name="pull" />Pull</button>`}>
    <form id="pull" class="form" onSubmit=${submit}>
      <${Field} id="pull-repo" label="Repository" hint="As the hub names it: owner/name. The files are checked, and a download that stops is taken up where it was.">
        <input id="pull-repo" name="repo" class="input" required data-first spellcheck="false" autocapitalize="off"
          placeholder="owner/name" aria-describedby="pull-repo-hint" /><//>
      <div class="pair">
        <${Field} id="pull-name" label="Name here"><input id="pull-name" name="name" class="input" placeholder="as in the repository" spellcheck="false" /><//>
        <${Field} id="pull-revision" label="Revision"><input id="pull-revision" name="revision" class="input" placeholder="main" spellcheck="false" /><//>
        <${Field} id="pull-priority" label="Priority"><select id="pull-priority" name="priority" class="select">
          <option value="normal">normal</option><option value="high">high</option><option value="low">low</option></select><//>
      </div>
      ${failure && html`<p class="note bad" role="alert"><${Icon} name="warn" />${failure.message}</p>`}
    </form>
  <//>`;
}
