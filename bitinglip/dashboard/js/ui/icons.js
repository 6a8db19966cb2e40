/** Icons of one stroke, drawn for 16 pixels; they are decoration and hidden from screen readers. */
import { html } from "../html.js";

const PATHS = {
  overview: "M2 9.500h3l1.500-5 3 8 1.500-4H14",
  models: "M8 1.800 14 5v6l-6 3.200L2 11V5zM2 5l6 3.200L14 5M8 8.200v6",
  playground: "M2.500 3.500h11v7h-6l-3 2.500v-2.500h-2z",
  tasks: "M6 4h8M6 8h8M6 12h8M2.500 4h.01M2.500 8h.01M2.500 12h.01",
  workers: "M4.500 4.500h7v7h-7zM6.500 2v2.500M9.500 2v2.500M6.500 11.500V14M9.500 11.500V14M2 6.500h2.500M2 9.500h2.500M11.500 6.500H14M11.500 9.500H14",
  cluster: "M6 2.500h4v3H6zM2 10.500h4v3H2zM10 10.500h4v3h-4zM8 5.500v2.500M4 10.500V8h8v2.500",
  requests: "M2.500 4.500h7M2.500 8h11M2.500 11.500h4M12 3.500v2M9 10.500v2",
  pin: "M6 2.500h4M6.800 2.500v4L4.500 9h7L9.200 6.500v-4M8 9v4.500",
  keys: "M9.800 6.200a2.800 2.800 0 1 0-2 2L3 13h2.500v-1.500H7V10l1.300-1.300",
  usage: "M2.500 13.500v-5M6.200 13.500v-10M9.900 13.500V7M13.500 13.500V5",
  audit: "M8 1.800 13 4v4c0 3-2.200 5.200-5 6.200C5.200 13.200 3 11 3 8V4zM6 8l1.500 1.500L10.300 6.500",
  sun: "M8 5.200a2.800 2.800 0 1 0 0 5.600 2.800 2.800 0 0 0 0-5.600zM8 1.500v1.300M8 13.200v1.300M1.500 8h1.300M13.200 8h1.300M3.400 3.400l.9.9M11.700 11.700l.9.9M3.400 12.600l.9-.9M11.700 4.300l.9-.9",
  moon: "M13 9.500A5.500 5.500 0 0 1 6.500 3 5.500 5.500 0 1 0 13 9.500z",
  system: "M2 3h12v8H2zM6 14h4M8 11v3",
  out: "M6 2.500H3v11h3M10 5l3 3-3 3M13 8H6.500",
  close: "M4 4l8 8M12 4l-8 8",
  plus: "M8 3v10M3 8h10",
  copy: "M5.500 5.500h8v8h-8zM10.500 5.500v-3h-8v8h3",
  check: "M3 8.500l3.200 3L13 4.800",
  warn: "M8 2 14.500 13.500h-13zM8 6.500v3.200M8 11.800h.01",
  play: "M5 3l8 5-8 5z",
  stop: "M4 4h8v8H4z",
  pull: "M8 2v8M4.500 7 8 10.500 11.500 7M2.500 13.500h11",
  bin: "M3 4.500h10M6.500 4.500V2.500h3v2M4.500 4.500l.5 9h6l.5-9",
  again: "M13 8a5 5 0 1 1-1.600-3.700M13 2v3h-3",
  eject: "M3 10l5-6 5 6zM3 12.800h10",
  mic: "M8 2a2 2 0 0 0-2 2v3.500a2 2 0 0 0 4 0V4a2 2 0 0 0-2-2zM3.800 7.500a4.200 4.200 0 0 0 8.400 0M8 11.700V14",
  send: "M2.500 8 13.500 3l-3.500 10.500L8 9z",
  info: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2zM8 7.300v3.500M8 5.200h.01",
  fit: "M2.500 6V2.500H6M10 2.500h3.500V6M13.500 10v3.500H10M6 13.500H2.500V10",
  search: "M7 2.500a4.500 4.500 0 1 0 0 9 4.500 4.500 0 0 0 0-9zM10.500 10.500l3 3",
};

/** @param {{name: keyof typeof PATHS}} props */
export function Icon({ name }) {
  return html`<svg class="icon-svg" viewBox="0 0 16 16" aria-hidden="true" focusable="false"
    fill="none" stroke="currentColor" stroke-width="1.4" stroke-linecap="round"
    stroke-linejoin="round"><path d=${PATHS[name]} /></svg>`;
}
