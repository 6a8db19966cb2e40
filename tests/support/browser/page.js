// What the tests look for in a page: elements by role and name, as a screen reader finds them.
window.bl = (() => {
  const ROLES = {
    button: "button, [role=button]",
    link: "a[href]",
    tab: "[role=tab]",
    dialog: "dialog, [role=dialog]",
    row: "tr",
    option: "option",
    field: "input, textarea, select",
    heading: "h1, h2, h3",
  };
  const text = (node) => (node.innerText ?? "").replace(/\s+/g, " ").trim();
  const name = (node) =>
    node.getAttribute("aria-label") ?? (node.labels?.length ? text(node.labels[0]) : text(node));
  const seen = (node) => node.checkVisibility({ visibilityProperty: true }) && node.getClientRects().length > 0;
  /** A name that ends in an ellipsis stands for all that begin so. */
  const matches = (told, wanted) => (wanted.endsWith("…") ? told.startsWith(wanted.slice(0, -1)) : told === wanted);
  /** All that are seen of a role, by their name; inside the last dialog if one is open. */
  const all = (role, wanted, within) => {
    const dialogs = [...document.querySelectorAll(ROLES.dialog)].filter(seen);
    const root = within ? row(within) : (dialogs.at(-1) ?? document);
    if (!root) return [];
    return [...root.querySelectorAll(ROLES[role])].filter((node) => (seen(node) || node.type === "file") && matches(name(node), wanted));
  };
  const row = (wanted) => [...document.querySelectorAll("tr, li, article")].filter((node) => seen(node) && text(node).includes(wanted)).at(-1);
  const find = (role, wanted, within) => all(role, wanted, within)[0] ?? null;
  const ready = (node) => node !== null && !node.disabled;
  return {
    find,
    row,
    text: () => text(document.body),
    has: (role, wanted, within) => ready(find(role, wanted, within)),
    // Each of these looks and acts in one turn, in which nothing is drawn anew; false: it is not there yet.
    click(role, wanted, within) {
      const node = find(role, wanted, within);
      if (!ready(node)) return false;
      node.scrollIntoView({ block: "center" });
      node.click();
      return true;
    },
    focus(wanted) {
      const node = find("field", wanted);
      if (!ready(node)) return false;
      node.focus();
      node.select?.();
      return true;
    },
    choose(wanted, value) {
      const node = find("field", wanted);
      if (!ready(node)) return false;
      node.value = value;
      for (const name of ["input", "change"]) node.dispatchEvent(new Event(name, { bubbles: true }));
      return true;
    },
    /** How far the page is wider than the screen, or a table wider than its card. */
    overflow: () =>
      Math.max(...[document.documentElement, ...document.querySelectorAll(".table-wrap")].map((each) => each.scrollWidth - each.clientWidth)),
  };
})();
