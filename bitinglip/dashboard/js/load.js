/** Data that a component loads, with its states: loading, there, failed. */
import { useCallback, useEffect, useRef, useState } from "./html.js";

/**
 * Load data when the component appears, when ``inputs`` change and on ``reload``.
 * While it is reloaded, the old data stays.
 * @template T
 * @param {(signal: AbortSignal) => Promise<T>} load
 * @param {unknown[]} [inputs]
 * @returns {{data: T | null, error: Error | null, loading: boolean, reload: () => void}}
 */
export function useLoaded(load, inputs = []) {
  const [found, setFound] = useState({ data: null, error: null, loading: true });
  const [turn, setTurn] = useState(0);
  const reload = useCallback(() => setTurn((before) => before + 1), []);
  useEffect(() => {
    const stop = new AbortController();
    setFound((before) => ({ ...before, loading: true }));
    load(stop.signal).then(
      (data) => stop.signal.aborted || setFound({ data, error: null, loading: false }),
      (error) => stop.signal.aborted || setFound((before) => ({ ...before, error, loading: false })),
    );
    return () => stop.abort();
  }, [...inputs, turn]);
  return { ...found, reload };
}

/**
 * Call something again and again while the component and the tab are seen.
 * @param {() => void} call
 * @param {number} milliseconds
 */
export function useEvery(call, milliseconds) {
  const last = useRef(call);
  last.current = call;
  useEffect(() => {
    const timer = setInterval(() => document.hidden || last.current(), milliseconds);
    return () => clearInterval(timer);
  }, [milliseconds]);
}
