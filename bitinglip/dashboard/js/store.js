/** A value that components follow. */
import { useEffect, useState } from "./html.js";

/**
 * @template T
 * @typedef {{get: () => T, set: (value: T) => void, follow: (told: (value: T) => void) => () => void}} Store
 */

/**
 * Make a store.
 * @template T
 * @param {T} value
 * @returns {Store<T>}
 */
export function createStore(value) {
  const followers = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      for (const told of [...followers]) told(next);
    },
    follow(told) {
      followers.add(told);
      return () => followers.delete(told);
    },
  };
}

/**
 * Draw the component again whenever the store changes.
 * @template T
 * @param {Store<T>} store
 * @returns {T}
 */
export function useStore(store) {
  const [value, setValue] = useState(store.get());
  useEffect(() => {
    setValue(store.get());
    return store.follow(setValue);
  }, [store]);
  return value;
}
