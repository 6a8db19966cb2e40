/**
 * Who uses the dashboard. A key is exchanged for a token that lives for minutes; the token is kept
 * in the tab's session storage and the key in no storage at all. Only if the user asks to stay
 * signed in, the key stays in this module's memory, to make the next token: a token cannot make one.
 */
import { createStore } from "./store.js";

/**
 * @typedef {object} Session
 * @property {"out" | "in" | "expired"} state
 * @property {string} [token] absent where the server asks for no key
 * @property {number} [ends] milliseconds of the clock
 * @property {string[]} scopes
 */

const KEPT = "bitinglip.session";
const RENEW_BEFORE = 60_000; // milliseconds before a token ends
const REFUSED = "The server does not know this key, or it has ended.";
/** @type {string | null} */
let key = null;
let timer = 0;

const open = document.querySelector('meta[name="bitinglip-sign-in"]')?.getAttribute("content") === "none";

/** @type {import("./store.js").Store<Session>} */
export const session = createStore(initial());
plan();

/** Whether this session has a scope; admin has all. */
export function may(scope) {
  const { scopes } = session.get();
  return scopes.includes("admin") || scopes.includes(scope);
}

/** Whether the server asks for keys at all. */
export const asksForKey = !open;

/** Headers that go with each request. */
export function authorization() {
  const { token } = session.get();
  return token ? { authorization: `Bearer ${token}` } : {};
}

/**
 * Exchange a key for a token.
 * @param {string} secret
 * @param {boolean} stay keep the key in memory, to renew the token
 * @returns {Promise<string | null>} what went wrong, in words
 */
export async function signIn(secret, stay) {
  const failure = await exchange(secret);
  key = failure === null && stay ? secret : null;
  plan();
  return failure;
}

/** The key, if the user lets it stay in memory. */
export const keptKey = () => key;

/** Revoke the token and forget everything. */
export async function signOut() {
  const headers = authorization();
  key = null;
  keep({ state: "out", scopes: [] });
  if (headers.authorization) {
    await fetch("api/v1/auth/revoke", { method: "POST", headers }).catch(() => undefined);
  }
}

/** @type {Promise<void> | null} */
let renewal = null;

/** Note that the server no longer takes the token: make another, or ask for the key. */
export function refused() {
  if (session.get().state !== "in" || open) return;
  renewal ??= renew().finally(() => {
    renewal = null;
  });
}

/** A server that does not answer is asked again while the token lives. */
async function renew() {
  const failure = key === null ? REFUSED : await exchange(key);
  if (failure === null || (failure !== REFUSED && Date.now() < session.get().ends)) plan();
  else expire();
}

async function exchange(secret) {
  let answer;
  try {
    answer = await fetch("api/v1/auth/token", {
      method: "POST",
      headers: { authorization: `Bearer ${secret}` },
    });
  } catch {
    return "The server cannot be reached.";
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) return REFUSED;
  if (!answer.ok) return body.error?.message ?? `The server answered ${answer.status}.`;
  keep({
    state: "in",
    token: body.access_token,
    ends: Date.now() + body.expires_in * 1000,
    scopes: body.scopes,
  });
  return null;
}

function expire() {
  key = null;
  keep({ ...session.get(), state: "expired", token: undefined });
}

/** Renew the token in time, or note its end. */
function plan() {
  clearTimeout(timer);
  const { state, ends } = session.get();
  if (state !== "in" || !ends) return;
  const left = ends - Date.now() - (key === null ? 0 : RENEW_BEFORE);
  timer = setTimeout(refused, Math.max(1000, left));
}

function initial() {
  if (open) return { state: "in", scopes: ["admin"] };
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    if (kept?.token && kept.ends > Date.now()) return { state: "in", ...kept };
  } catch {
    // nothing readable is kept
  }
  return { state: "out", scopes: [] };
}

function keep(next) {
  try {
    if (next.state === "in") {
      const { token, ends, scopes } = next;
      sessionStorage.setItem(KEPT, JSON.stringify({ token, ends, scopes }));
    } else {
      sessionStorage.removeItem(KEPT);
    }
  } catch {
    // storage is off: the session lives as long as the page
  }
  session.set(next);
}
