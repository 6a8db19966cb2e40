/** Requests to this server's API. Addresses are relative, so a proxy may put a path before them. */
import { authorization, refused } from "./session.js";

/** An answer that is an error, in the server's own words. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 if there was no answer
   * @param {string} code
   * @param {string} message
   * @param {object} [more]
   */
  constructor(status, code, message, more = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.details = more.details ?? null;
    this.param = more.param ?? null;
    this.requestId = more.request_id ?? null;
  }
}

export const api = {
  /** @param {string} path @param {Record<string, unknown>} [query] */
  get: (path, query, signal) => send("GET", path + asQuery(query), undefined, signal),
  /** ``key``: sent in place of the session's token, for what tokens may not do */
  post: (path, body, signal, key) => send("POST", path, body, signal, key),
  patch: (path, body, key) => send("PATCH", path, body, undefined, key),
  delete: (path, query) => send("DELETE", path + asQuery(query)),
  /** Like get, for bytes. @returns {Promise<Blob>} */
  blob: async (path) => (await request("GET", path)).blob(),
  /** Like post, with files. @param {FormData} form */
  form: (path, form, signal) => send("POST", path, form, signal),
  stream,
};

/** Make a model's id or another name part of a path; a slash in it stays one. */
export function part(name) {
  return encodeURIComponent(name).replaceAll("%2F", "/");
}

/**
 * Read server-sent events until they end. EventSource cannot send the header, so this is fetch.
 * @param {string} path
 * @param {{body?: unknown, signal?: AbortSignal, onEvent: (name: string, data: any) => void}} options
 */
async function stream(path, { body, signal, onEvent }) {
  const answer = await request(body === undefined ? "GET" : "POST", path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) tell(block, onEvent);
  }
}

function tell(block, onEvent) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  if (data.length && data[0] !== "[DONE]") onEvent(name, JSON.parse(data.join("\n")));
}

async function send(method, path, body, signal, key) {
  const answer = await request(method, path, body, signal, key);
  return answer.status === 204 ? null : answer.json();
}

async function request(method, path, body, signal, key) {
  const headers = key ? { authorization: `Bearer ${key}` } : { ...authorization() };
  const form = body instanceof FormData;
  if (body !== undefined && !form) headers["content-type"] = "application/json";
  const sent = body === undefined || form ? body : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: sent, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "UNREACHABLE", "The server cannot be reached.");
  }
  if (answer.ok) return answer;
  const told = (await answer.json().catch(() => ({}))).error ?? {};
  if (answer.status === 401 && !key) refused();
  throw new ApiError(
    answer.status,
    told.code ?? `HTTP_${answer.status}`,
    told.message ?? `The server answered ${answer.status}.`,
    told,
  );
}

function asQuery(query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const text = new URLSearchParams(given).toString();
  return text ? `?${text}` : "";
}
