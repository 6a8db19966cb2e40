/** Turns the pages of a long list. */
import { whole } from "../format.js";
import { html } from "../html.js";
import { Button } from "./parts.js";

/** @param {{offset: number, limit: number, total: number, onChange: (offset: number) => void}} props */
export function Pager({ offset, limit, total, onChange }) {
  if (total <= limit && offset === 0) return null;
  return html`<nav class="pager" aria-label="Parts of the list">
    <span class="small quiet">${whole(offset + 1)}–${whole(Math.min(offset + limit, total))} of ${whole(total)}</span>
    <${Button} kind="tiny" disabled=${offset === 0} onClick=${() => onChange(Math.max(0, offset - limit))}>Newer<//>
    <${Button} kind="tiny" disabled=${offset + limit >= total} onClick=${() => onChange(offset + limit)}>Older<//>
  </nav>`;
}
