/** Light, dark, or as the system has it. */
import { html } from "../html.js";
import { createStore, useStore } from "../store.js";
import { Button } from "./parts.js";

const KEPT = "bitinglip.theme";
const NEXT = { system: "light", light: "dark", dark: "system" };
const ICONS = { system: "system", light: "sun", dark: "moon" };

const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = createStore(document.documentElement.dataset.theme ?? "system");

/** The theme that is seen: changes with the choice and with the system. */
export const theme = createStore(seen());
dark.addEventListener("change", () => theme.set(seen()));

function seen() {
  const choice = chosen.get();
  return choice === "system" ? (dark.matches ? "dark" : "light") : choice;
}

function choose(choice) {
  const { dataset } = document.documentElement;
  if (choice === "system") delete dataset.theme;
  else dataset.theme = choice;
  try {
    localStorage.setItem(KEPT, choice);
  } catch {
    // storage is off: the choice lives as long as the page
  }
  chosen.set(choice);
  theme.set(seen());
}

export function ThemeSwitch() {
  const choice = useStore(chosen);
  return html`<${Button} kind="plain" icon=${ICONS[choice]} label=${`Theme: ${choice}`}
    onClick=${() => choose(NEXT[choice])} />`;
}
