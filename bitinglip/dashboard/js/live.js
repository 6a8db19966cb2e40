/** The cluster as it is now and as it was in the last minutes, while a page is visible. */
import { api } from "./api.js";
import { may, session } from "./session.js";
import { createStore } from "./store.js";

const KEPT = 600; // snapshots: ten minutes
const LONGEST_PAUSE = 15_000; // milliseconds between two tries

/**
 * @typedef {object} Live
 * @property {"off" | "connecting" | "live" | "lost"} state
 * @property {any} now the last snapshot; null before the first
 * @property {any[]} past what charts show of each snapshot, the oldest first
 * @property {string} [reason] why it is lost
 */

/** @type {import("./store.js").Store<Live>} */
export const live = createStore({ state: "off", now: null, past: [] });

/** @type {AbortController | null} */
let running = null;

/** Follow the cluster for as long as the session and the tab are there. */
export function followCluster() {
  const decide = () => {
    const wanted = session.get().state === "in" && may("cluster:read") && !document.hidden;
    if (wanted && running === null) run();
    else if (!wanted && running !== null) running.abort();
  };
  session.follow(decide);
  document.addEventListener("visibilitychange", decide);
  decide();
}

async function run() {
  running = new AbortController();
  const { signal } = running;
  let pause = 500;
  while (!signal.aborted) {
    live.set({ ...live.get(), state: live.get().now ? live.get().state : "connecting" });
    try {
      await api.stream("api/v1/cluster/events", {
        signal,
        onEvent: (_name, snapshot) => {
          pause = 500;
          take(snapshot);
        },
      });
    } catch (error) {
      if (!signal.aborted) live.set({ ...live.get(), state: "lost", reason: error.message });
      if (error.status === 401 || error.status === 403) break;
    }
    if (!signal.aborted) await sleep(pause, signal);
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  }
  running = null;
  if (session.get().state === "out") live.set({ state: "off", now: null, past: [] });
}

function take(snapshot) {
  const { past } = live.get();
  const before = past.at(-1);
  const moment = summary(snapshot, before);
  // a server that was restarted counts from zero
  const kept = before && moment.totals.requests < before.totals.requests ? [] : past;
  live.set({ state: "live", now: snapshot, past: [...kept.slice(1 - KEPT), moment] });
}

/** What charts show of a snapshot: rates come from the totals of two. */
function summary(snapshot, before) {
  const rate = (name) => {
    if (!before) return null;
    const seconds = snapshot.at - before.at;
    return seconds > 0 ? Math.max(0, (snapshot.totals[name] - before.totals[name]) / seconds) : null;
  };
  return {
    at: snapshot.at,
    totals: snapshot.totals,
    made: rate("completion_tokens"),
    read: rate("prompt_tokens"),
    requests: rate("requests"),
    firstToken: snapshot.last_minute.first_token?.p50 ?? null,
    devices: Object.fromEntries(
      snapshot.devices.map((each) => [
        each.id,
        { utilisation: each.utilisation, temperature: each.temperature_c, power: each.power_w },
      ]),
    ),
  };
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
