/** What the machine does now: devices, rates, queues, models at work, last errors. */
import { bytes, number, percent, relative, seconds } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { live } from "../live.js";
import { may } from "../session.js";
import { useStore } from "../store.js";
import { Chart, series } from "../ui/chart.js";
import { Icon } from "../ui/icons.js";
import { Badge, Card, Empty, Failure, Loading, PageHead, Segments } from "../ui/parts.js";

export default function Overview() {
  const { state, now, past, reason } = useStore(live);
  if (now === null) {
    return html`<${PageHead} title="Overview" />
      <${Card} flush>${state === "lost" ? html`<${Failure} error=${new Error(reason)} />` : html`<${Loading} rows=${8} />`}<//>`;
  }
  const colours = modelColours(now);
  return html`
    <${PageHead} title="Overview"><${Connection} state=${state} now=${now} /><//>
    ${now.missing_card && html`<p class="note warn"><${Icon} name="warn" />${now.missing_card}</p>`}
    <${Stats} now=${now} past=${past} />
    <div class="grid">
      <${Card} title="Devices" flush class="two-thirds">
        ${now.devices.map((device) => html`<${Device} key=${device.id} device=${device} now=${now} colours=${colours} />`)}
      <//>
      <${Card} title="Queues" flush class="third"><${Queues} tiers=${now.tiers} /><//>
      <${Flow} past=${past} />
      <${DeviceCharts} now=${now} past=${past} />
      <${Card} title="Models at work" flush class="half"><${AtWork} models=${now.models} colours=${colours} /><//>
      <${Card} title="Last errors" flush class="half"><${Errors} errors=${now.errors} /><//>
    </div>`;
}

function Connection({ state, now }) {
  if (state === "live" && now.status === "running") return html`<${Badge} state="live" tone="ok" />`;
  if (state === "live") return html`<${Badge} state=${now.status} tone="warn" />`;
  return html`<span role="status"><${Badge} state="reconnecting" tone="warn" /></span>`;
}

/** Each model keeps its colour while the set of models stays. */
function modelColours(now) {
  const names = now.models.map((each) => each.model_id).sort();
  return new Map(names.map((name, index) => [name, series(index)]));
}

function Stats({ now, past }) {
  const { last_minute: minute } = now;
  const last = past.at(-1);
  const recent = past.slice(-5).map((each) => each.made).filter((value) => value !== null);
  const made = recent.length ? recent.reduce((sum, value) => sum + value, 0) / recent.length : null;
  const loaded = now.models.filter((each) => each.ready > 0).length;
  const rows = [
    ["Running", number(now.in_flight - now.queued), "", `${now.queued} waiting`],
    ["Tokens", number(made), "/s", `${number(last.totals.completion_tokens)} since the start`],
    ["First token", seconds(minute.first_token?.p50), "", minute.first_token ? `95%: ${seconds(minute.first_token.p95)}` : "no stream in a minute"],
    ["Jobs", number(minute.jobs), "/min", minute.queue ? `waited ${seconds(minute.queue.p50)}` : "none in a minute"],
    ["Failed", number(minute.failed), "/min", `${number(last.totals.jobs_failed)} since the start`, minute.failed > 0],
    ["Models", `${loaded}`, `of ${now.models.length}`, `load ${percent(now.load)}`],
  ];
  return html`<dl class="stats" aria-label="Key figures">
    ${rows.map(([name, value, unit, more, alarm]) => html`<div key=${name} class=${`stat ${alarm ? "alarm" : ""}`}>
      <dt>${name}</dt><dd>${value}${unit && html`<small>${unit}</small>`}</dd><dd class="stat-more">${more}</dd></div>`)}
  </dl>`;
}

function Device({ device, now, colours }) {
  const held = now.reservations.filter((each) => each.device === device.id);
  const byModel = new Map();
  for (const each of held) byModel.set(each.model, (byModel.get(each.model) ?? 0) + each.bytes);
  const parts = [...byModel].filter(([, size]) => size > 0).map(([model, size]) => ({ name: model, size, token: colours.get(model) ?? "--series-0" }));
  const known = parts.reduce((sum, part) => sum + part.size, 0);
  if (known < device.reserved_bytes) parts.push({ name: "other models", size: device.reserved_bytes - known, token: "--series-7" });
  const all = Math.max(1, device.memory_bytes);
  const isKnown = device.state === "well"; // else none of it can be used, and who has it is not told
  const elsewhere = isKnown ? all - device.reserved_bytes - device.free_bytes : 0; // of what we may use
  const gateways = Math.max(0, Math.min(device.elsewhere_bytes, elsewhere));
  if (gateways > 0) parts.push({ name: "other gateways", size: gateways, token: "--series-6" });
  if (elsewhere > gateways) parts.push({ name: "other programs and reserve", size: elsewhere - gateways, token: "--foreign" });
  const taken = parts.reduce((sum, part) => sum + part.size, 0);
  const told = parts.map((part) => `${part.name} ${bytes(part.size)}`).join(", ");
  return html`<article class="device" aria-label=${device.name}>
    <div class="device-head">
      <strong>${device.name}</strong><span class="quiet mono">${device.id}</span>
      ${device.state !== "well" && html`<${Badge} state=${device.state} />`}
      ${device.slowed_by.length > 0 && html`<${Badge} state=${`slowed: ${device.slowed_by.join(", ")}`} tone="warn" />`}
      <span class="figures">
        <span><b>${percent(device.utilisation)}</b> busy</span>
        ${device.temperature_c !== null && html`<span><b>${Math.round(device.temperature_c)}</b> °C</span>`}
        ${device.power_w !== null && html`<span><b>${Math.round(device.power_w)}</b> W</span>`}
      </span>
    </div>
    ${device.reason && html`<p class="note bad"><${Icon} name="warn" />${device.reason}</p>`}
    <div class="bar thick" role="img" aria-label=${`Memory: ${bytes(taken)} of ${bytes(device.memory_bytes)} taken. ${told}`}>
      ${parts.map((part) => html`<span key=${part.name} title=${`${part.name}: ${bytes(part.size)}`}
        style=${{ width: `${(100 * part.size) / all}%`, background: `var(${part.token})` }}></span>`)}
    </div>
    <ul class="legend">
      ${parts.map((part) => html`<li key=${part.name}><span class="swatch" style=${{ background: `var(${part.token})` }}></span>
        <span class="clip">${part.name}</span> ${bytes(part.size)}</li>`)}
      <li><span class="swatch free"></span>free ${isKnown ? bytes(device.free_bytes) : "?"} of ${bytes(device.memory_bytes)}</li>
    </ul>
    ${device.note && html`<p class="small quiet">${device.note}</p>`}
  </article>`;
}

function Queues({ tiers }) {
  const most = Math.max(1, ...tiers.map((each) => each.waiting + each.running));
  return html`<table class="table">
    <thead><tr><th scope="col">Tier</th><th scope="col" class="number">Running</th><th scope="col" class="number">Waiting</th><th scope="col"><span class="unseen">Share</span></th></tr></thead>
    <tbody>${tiers.map((each) => html`<tr key=${each.tier}>
      <th scope="row">${each.tier}</th><td class="number">${each.running}</td><td class="number">${each.waiting}</td>
      <td style=${{ width: "34%" }}><div class="bar" aria-hidden="true">
        <span style=${{ width: `${(100 * each.running) / most}%`, minWidth: 0 }}></span>
        <span style=${{ width: `${(100 * each.waiting) / most}%`, minWidth: 0, background: "var(--series-2)" }}></span></div></td>
    </tr>`)}</tbody></table>`;
}

const FLOWS = [["tokens", "Tokens/s"], ["requests", "Requests/s"], ["first", "First token"]];

function Flow({ past }) {
  const [shown, show] = useState("tokens");
  const times = past.map((each) => each.at);
  const charts = {
    tokens: {
      lines: [{ label: "generated", token: "--series-0", fill: true }, { label: "prompt", token: "--series-1" }],
      data: [times, past.map((each) => each.made), past.map((each) => each.read)],
      format: number,
    },
    requests: {
      lines: [{ label: "requests", token: "--series-0", fill: true }],
      data: [times, past.map((each) => each.requests)],
      format: number,
    },
    first: {
      lines: [{ label: "median of a minute", token: "--series-2", fill: true }],
      data: [times, past.map((each) => each.firstToken)],
      format: seconds,
    },
  };
  const { lines } = charts[shown];
  return html`<${Card} title="Flow" class="half" tools=${html`<${Legend} lines=${lines} />
      <${Segments} label="Figure" options=${FLOWS} value=${shown} onChange=${show} />`}>
    <${Chart} key=${shown} title=${FLOWS.find(([name]) => name === shown)[1]} ...${charts[shown]} />
  <//>`;
}

const FIGURES = [
  ["utilisation", "Busy", percent, 1],
  ["temperature", "Temperature", (value) => `${Math.round(value)} °C`],
  ["power", "Power", (value) => `${Math.round(value)} W`],
];

function DeviceCharts({ now, past }) {
  const there = FIGURES.filter(([name]) => name === "utilisation" || past.some((each) => Object.values(each.devices).some((device) => device[name] !== null)));
  const [shown, show] = useState("utilisation");
  const [name, title, format, most] = there.find(([each]) => each === shown) ?? FIGURES[0];
  const lines = now.devices.map((device, index) => ({ label: device.id, token: series(index), fill: now.devices.length === 1 }));
  const data = useMemo(
    () => [past.map((each) => each.at), ...now.devices.map(({ id }) => past.map((each) => each.devices[id]?.[name] ?? null))],
    [past, name],
  );
  return html`<${Card} title="Devices over time" class="half" tools=${html`<${Legend} lines=${lines} />
      ${there.length > 1 && html`<${Segments} label="Figure" options=${there} value=${name} onChange=${show} />`}`}>
    <${Chart} key=${name} title=${title} lines=${lines} data=${data} format=${format} most=${most} />
  <//>`;
}

function Legend({ lines }) {
  return html`<ul class="legend" aria-hidden="true">${lines.map((line) => html`<li key=${line.label}>
    <span class="swatch" style=${{ background: `var(${line.token})` }}></span>${line.label}</li>`)}</ul>`;
}

function AtWork({ models, colours }) {
  const shown = models.filter((each) => each.status !== "available" || each.queued || each.running);
  if (!shown.length) {
    return html`<${Empty} icon="models" title="No model is loaded" text="A model is loaded by its first request, or on the page of models.">
      ${may("models:read") && html`<a class="button" href="#/models">Open models</a>`}<//>`;
  }
  return html`<div class="table-wrap"><table class="table stacks">
    <thead><tr><th scope="col">Model</th><th scope="col">State</th><th scope="col" class="number">Running</th>
      <th scope="col" class="number">Waiting</th><th scope="col" class="number">Unused for</th></tr></thead>
    <tbody>${shown.map((each) => html`<tr key=${each.model_id}>
      <th scope="row"><span class="swatch inline" style=${{ background: `var(${colours.get(each.model_id)})` }}></span>${each.model_id}</th>
      <td data-label="State"><span class="nowrap"><${Badge} state=${each.status} />${each.status === "loading" && each.progress !== null ? ` ${percent(each.progress)}${each.copying ? ` copied to ${each.copying.node}` : ""}` : ""}</span></td>
      <td class="number" data-label="Running">${each.running}</td>
      <td class="number nowrap" data-label="Waiting"><span>${each.queued}${each.queued && each.eta ? html` <span class="quiet">≈ ${seconds(each.eta)}</span>` : ""}</span></td>
      <td class="number nowrap" data-label="Unused for">${each.pinned ? "pinned" : seconds(each.idle_seconds)}</td>
    </tr>`)}</tbody></table></div>`;
}

function Errors({ errors }) {
  if (!errors.length) return html`<${Empty} icon="check" title="No errors" text="Jobs that fail are listed here." />`;
  return html`<ul class="errors">${errors.map((each) => html`<li key=${each.task_id}>
    <span><code>${each.code}</code> <span class="quiet">${each.model}</span></span>
    <time class="quiet small nowrap" datetime=${each.at}>${relative(each.at)}</time>
    ${each.message && html`<p class="small">${each.message}</p>`}</li>`)}</ul>`;
}
