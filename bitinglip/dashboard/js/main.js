/** The frame around all pages: navigation, account, and the page that the address names. */
import { api } from "./api.js";
import { html, render, useEffect, useRef, useState } from "./html.js";
import { followCluster } from "./live.js";
import { asksForKey, may, session, signOut } from "./session.js";
import { useStore } from "./store.js";
import { KeyQuestion } from "./ask_key.js";
import { SignInAgain, SignInPage } from "./sign_in.js";
import { Confirmation } from "./ui/dialog.js";
import { Icon } from "./ui/icons.js";
import { Button, Failure, Loading } from "./ui/parts.js";
import { ThemeSwitch } from "./ui/theme_switch.js";
import { Toasts } from "./ui/toast.js";

const INFERENCE = ["inference:text", "inference:image", "inference:audio"];
/** One module a page; ``needs``: any of these scopes, none for all. */
const PAGES = [
  { name: "overview", title: "Overview", needs: ["cluster:read"], load: () => import("./pages/overview.js") },
  { name: "models", title: "Models", needs: ["models:read"], load: () => import("./pages/models.js") },
  { name: "playground", title: "Playground", needs: INFERENCE, load: () => import("./pages/playground.js") },
  { name: "tasks", title: "Tasks", needs: INFERENCE, load: () => import("./pages/tasks.js") },
  { name: "workers", title: "Workers", needs: ["cluster:read"], load: () => import("./pages/workers.js") },
  { name: "cluster", title: "Cluster", needs: ["cluster:read"], load: () => import("./pages/cluster.js") },
  { name: "requests", title: "Requests", needs: ["admin"], load: () => import("./pages/requests.js") },
  { name: "keys", title: "Keys", needs: ["admin"], load: () => import("./pages/keys.js") },
  { name: "usage", title: "Usage", needs: [], load: () => import("./pages/usage.js") },
  { name: "audit", title: "Audit", needs: ["admin"], load: () => import("./pages/audit.js") },
];

const version = document.querySelector('meta[name="bitinglip-version"]').getAttribute("content");
const icon = document.querySelector('link[rel="icon"]').getAttribute("href");

function useAddress() {
  const [address, setAddress] = useState(location.hash.slice(2));
  useEffect(() => {
    const changed = () => setAddress(location.hash.slice(2));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return address;
}

export function Brand() {
  return html`<div class="brand"><img src=${icon} alt="" /><span>BitingLip</span></div>`;
}

function Account() {
  const [limits, setLimits] = useState(null);
  const { state } = useStore(session);
  useEffect(() => {
    if (state === "in") api.get("api/v1/limits").then(setLimits, () => undefined);
  }, [state]);
  return html`<div class="account">
    ${asksForKey
      ? html`<div class="clip" title=${limits?.key_id}>${limits ? `Tier ${limits.tier}` : "Signed in"}</div>`
      : html`<div>No key is asked for</div>`}
    <div>Version ${version} · <a href="docs">API</a></div>
  </div>`;
}

function Tools() {
  return html`<div class="row-tools"><${ThemeSwitch} />
    ${asksForKey && html`<${Button} kind="plain" icon="out" label="Sign out" onClick=${signOut} />`}</div>`;
}

/** Loads a page's module, and says what is wrong if that fails. */
function PageOf({ page }) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let here = true;
    page.load().then(
      (module) => here && setFound({ name: page.name, Page: module.default }),
      () => here && setFound({ name: page.name, error: new Error("The server may have been updated: reload this page.") }),
    );
    document.title = `${page.title} – BitingLip`;
    return () => {
      here = false;
    };
  }, [page]);
  if (found.name !== page.name) return html`<${Loading} rows=${8} />`;
  if (found.error) return html`<${Failure} error=${found.error} retry=${() => location.reload()} />`;
  return html`<${found.Page} />`;
}

function Frame() {
  const address = useAddress();
  const main = useRef(null);
  const pages = PAGES.filter(({ needs }) => !needs.length || needs.some(may));
  const page = pages.find(({ name }) => name === address.split("/")[0]) ?? pages[0];
  const first = useRef(true);
  useEffect(() => {
    if (!first.current) main.current.focus({ preventScroll: true });
    first.current = false;
    scrollTo(0, 0);
    // on phones the bar of pages scrolls
    document.querySelector(".nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [page]);
  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`<a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <div class="frame">
      <header class="top"><div class="grow"><${Brand} /></div><${Tools} /></header>
      <aside class="side" aria-label="Pages and account">
        <${Brand} />
        <nav class="nav" aria-label="Pages">
          ${pages.map((each) => html`<a key=${each.name} href=${`#/${each.name}`}
            aria-current=${each === page ? "page" : undefined}><${Icon} name=${each.name} />${each.title}</a>`)}
        </nav>
        <div class="side-foot"><${Account} /><${Tools} /></div>
      </aside>
      <main class="main" id="main" tabindex="-1" ref=${main}>
        <div class="page"><${PageOf} page=${page} /></div>
      </main>
    </div>`;
}

function App() {
  const { state } = useStore(session);
  return html`${state === "out" ? html`<${SignInPage} />` : html`<${Frame} />`}
    ${state === "expired" && html`<${SignInAgain} />`}
    <${Confirmation} /><${KeyQuestion} /><${Toasts} />`;
}

followCluster();
render(html`<${App} />`, document.getElementById("app"));
