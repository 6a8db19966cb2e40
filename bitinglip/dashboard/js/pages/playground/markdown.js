/** Markdown of a model as markup: the only place of the dashboard that makes markup of text. */
import DOMPurify from "../../../vendor/purify.mjs";
import { marked } from "../../../vendor/marked.mjs";
import { html, useMemo } from "../../html.js";

const ALLOWED = {
  ALLOWED_TAGS: ["p", "br", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "hr",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a"],
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^https?:/i,
};

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

/** Tags that a model writes are shown as text: a reader wants to see them. */
marked.use({ renderer: { html: ({ text }) => text.replaceAll(/[&<>"]/g, (each) => ESCAPES[each]) } });

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** @param {{text: string}} props */
export function Markdown({ text }) {
  const markup = useMemo(() => DOMPurify.sanitize(marked.parse(text, { breaks: true }), ALLOWED), [text]);
  return html`<div class="markdown" dangerouslySetInnerHTML=${{ __html: markup }}></div>`;
}
