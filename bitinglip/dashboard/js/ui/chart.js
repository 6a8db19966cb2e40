/** Lines over time, drawn by uPlot in the colours of the theme. */
import uPlot from "../../vendor/uplot.mjs";
import { html, useEffect, useRef } from "../html.js";
import { useStore } from "../store.js";
import { theme } from "./theme_switch.js";

const HALF_DAY = 43_200; // seconds; bars are as wide as a day

/** The colour that a design token has now; canvas knows no custom properties. */
export function colour(token) {
  const probe = document.createElement("span");
  probe.style.color = `var(${token})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The token of a series by its place. @param {number} index */
export const series = (index) => `--series-${index % 8}`;

/**
 * @typedef {{label: string, token: string, fill?: boolean}} Line
 * @param {{lines: Line[], data: (number | null)[][], format: (value: number) => string,
 *   height?: number, most?: number, title: string, bars?: boolean}} props
 *   ``data`` is the times in seconds, then the values of each line
 */
export function Chart({ lines, data, format, height = 150, most, title, bars }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shown = useStore(theme);
  const shape = lines.map((line) => line.label + line.token).join() + shown + height + most;
  useEffect(() => {
    const element = place.current;
    const options = make(lines, { format, height, most, bars, width: element.clientWidth });
    plot.current = new uPlot(options, data, element);
    const observer = new ResizeObserver(() => {
      if (element.clientWidth) plot.current.setSize({ width: element.clientWidth, height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(data), [data, shape]);
  const empty = data[0].length < (bars ? 1 : 2);
  return html`<figure class="chart" role="img" aria-label=${`${title}. ${spoken(lines, data, format)}`}>
    <div ref=${place}></div>
    ${empty && html`<p class="chart-empty">${bars ? "Nothing in this time" : "Waiting for the first seconds …"}</p>`}
  </figure>`;
}

/** What the chart says last, for those who do not see it. */
function spoken(lines, data, format) {
  return lines
    .map((line, index) => `${line.label}: ${format(data[index + 1].at(-1) ?? 0)}`)
    .join(", ");
}

function make(lines, { format, height, most, bars, width }) {
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
  return {
    width,
    height,
    legend: { show: false },
    padding: [8, 26, 0, 0],
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    scales: { x: bars ? { range: (_, low, high) => [low - HALF_DAY, high + HALF_DAY] } : { range: atLeastAMinute }, y: { range: (_, __, high) => [0, most ?? (high > 0 ? high * 1.15 : 1)] } },
    axes: [
      { ...axis, grid: { show: false }, size: 24, space: 70, values: times },
      { ...axis, grid, size: wide, space: 34, values: (_, ticks) => ticks.map(format) },
    ],
    plugins: [tip(lines, format)],
    series: [
      {},
      ...lines.map((line) => {
        const stroke = colour(line.token);
        return {
          label: line.label,
          stroke,
          width: bars ? 0 : 1.5,
          points: { show: false },
          fill: bars ? fade(stroke, 0.8) : line.fill ? fade(stroke, 0.12) : undefined,
          paths: bars ? uPlot.paths.bars({ size: [0.7, 42], radius: 0.15 }) : undefined,
          spanGaps: false,
        };
      }),
    ],
  };
}

/** As wide as the widest of an axis' labels. */
function wide(self, labels) {
  self.ctx.save();
  self.ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  const widths = (labels ?? []).map((label) => self.ctx.measureText(label).width / devicePixelRatio);
  self.ctx.restore();
  return Math.ceil(Math.max(36, ...widths) + 16);
}

/** The last minute at least, so that the first seconds do not fill the whole width. */
function atLeastAMinute(_self, low, high) {
  const last = high ?? Date.now() / 1000;
  return [Math.min(low ?? last, last - 60), last];
}

/** A computed colour with some of it seen through. */
function fade(computed, part) {
  const [red, green, blue] = computed.match(/[\d.]+/g);
  return `rgba(${red}, ${green}, ${blue}, ${part})`;
}

function times(self, ticks) {
  const span = self.scales.x.max - self.scales.x.min;
  const clock = { hour: "2-digit", minute: "2-digit", hour12: false };
  const shape = span > 2 * 86_400 ? { day: "numeric", month: "short" }
    : span < 300 ? { ...clock, second: "2-digit" } : clock;
  return ticks.map((tick) => new Date(tick * 1000).toLocaleString("en", shape));
}

/** A small table at the cursor. */
function tip(lines, format) {
  let box;
  return {
    hooks: {
      init(self) {
        box = document.createElement("div");
        box.className = "tip";
        box.hidden = true;
        self.over.append(box);
        self.over.addEventListener("mouseleave", () => (box.hidden = true));
      },
      setCursor(self) {
        const { idx, left } = self.cursor;
        box.hidden = idx === null || idx === undefined || left < 0;
        if (box.hidden) return;
        const at = new Date(self.data[0][idx] * 1000);
        const rows = lines.map((line, place) => {
          const row = document.createElement("div");
          const value = self.data[place + 1][idx];
          row.textContent = `${line.label}  ${value === null || value === undefined ? "–" : format(value)}`;
          return row;
        });
        const head = document.createElement("div");
        head.className = "quiet";
        const days = self.scales.x.max - self.scales.x.min > 2 * 86_400;
        head.textContent = days ? at.toLocaleDateString() : at.toLocaleTimeString("en", { hour12: false });
        box.replaceChildren(head, ...rows);
        const right = left > self.over.clientWidth / 2;
        box.style.left = right ? "auto" : `${left + 10}px`;
        box.style.right = right ? `${self.over.clientWidth - left + 10}px` : "auto";
      },
    },
  };
}
