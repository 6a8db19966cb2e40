/** Downloads of models, each followed by its own stream of events while it runs. */
import { api, part } from "./api.js";
import { createStore } from "./store.js";

/**
 * @typedef {object} Download
 * @property {string} id
 * @property {string} model
 * @property {string} repo
 * @property {string | null} revision
 * @property {"pull" | "update" | "repair"} task
 * @property {string} state queued, running, completed, failed or cancelled
 * @property {number} bytes_done
 * @property {number | null} bytes_total
 * @property {{path: string, bytes_done: number, bytes_total: number}[]} files
 * @property {{code: string, message: string} | null} error
 */

/** @type {import("./store.js").Store<(Download & {rate?: number})[]>} */
export const downloads = createStore([]);

/** @type {Map<string, AbortController>} */
const followed = new Map();

export const isOpen = (download) => ["queued", "running"].includes(download.state);

/** Read which downloads there are, and follow the open ones. */
export async function loadDownloads() {
  const { data } = await api.get("api/v1/models/downloads", { limit: 20 });
  downloads.set(data.map((each) => ({ ...each, rate: rateOf(each.id) })));
  data.filter(isOpen).forEach(follow);
}

/**
 * Ask for a download; one of the same that runs is joined.
 * @param {{model_name: string, revision?: string, name?: string, priority?: string}} wanted
 */
export async function startDownload(wanted) {
  return begun(await api.post("api/v1/models/download", wanted));
}

/** Ask again for what has failed or was cancelled. @param {Download} download */
export async function resumeDownload({ repo, model, revision, task }) {
  const path = `api/v1/models/${part(model)}`;
  const asked = revision ? { revision } : {};
  if (task === "update") return begun(await api.post(`${path}/update`, asked));
  if (task === "repair") return begun(await api.post(`${path}/verify`, { repair: true }));
  return startDownload({ model_name: repo, name: model, ...asked });
}

function begun(made) {
  replace(made);
  follow(made);
  return made;
}

/** @param {string} id */
export async function cancelDownload(id) {
  await api.delete(`api/v1/models/downloads/${id}`);
  await loadDownloads();
}

/** Take one that has ended off the list. @param {string} id @param {boolean} purge throw away what has come, too */
export async function forgetDownload(id, purge) {
  await api.delete(`api/v1/models/downloads/${id}`, purge ? { forget: true, purge } : { forget: true });
  await loadDownloads();
}

/** Stop following; what runs on the server goes on. */
export function leaveDownloads() {
  for (const stop of followed.values()) stop.abort();
  followed.clear();
}

async function follow({ id }) {
  if (followed.has(id)) return;
  const stop = new AbortController();
  followed.set(id, stop);
  try {
    await api.stream(`api/v1/models/downloads/${id}/events`, {
      signal: stop.signal,
      onEvent: (_name, download) => replace(download),
    });
  } catch {
    // the list is read again and again, and says how it goes
  } finally {
    followed.delete(id);
  }
}

const marks = new Map(); // by id: how far a download was at which second, and its rate

function rateOf(id) {
  return marks.get(id)?.rate;
}

/** Bytes a second, smoothed over some seconds. */
function measure({ id, bytes_done: done }) {
  const now = performance.now() / 1000;
  const before = marks.get(id);
  if (!before || done < before.done) {
    marks.set(id, { at: now, done, rate: undefined });
  } else if (now - before.at >= 1) {
    const fresh = (done - before.done) / (now - before.at);
    const rate = before.rate === undefined ? fresh : 0.6 * before.rate + 0.4 * fresh;
    marks.set(id, { at: now, done, rate });
  }
}

function replace(download) {
  measure(download);
  const told = { ...download, rate: rateOf(download.id) };
  const others = downloads.get();
  const known = others.some((each) => each.id === download.id);
  downloads.set(known ? others.map((each) => (each.id === download.id ? told : each)) : [told, ...others]);
}
