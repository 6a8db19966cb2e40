/** The one place that binds preact, its hooks and htm; every module takes them from here. */
import { Fragment, h, render } from "../vendor/preact.mjs";
import htm from "../vendor/htm.mjs";

export { useCallback, useEffect, useMemo, useRef, useState } from "../vendor/hooks.mjs";
export { Fragment, render };

/** Tagged template that makes virtual nodes; text in it is always text, never markup. */
export const html = htm.bind(h);
