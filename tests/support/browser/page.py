"""A page of a browser as tests use it: they find things by role and name, and wait for them."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_SCRIPT = Path(__file__).with_name("page.js").read_text()
_PATIENCE = 60.0  #: seconds; only failures wait so long
_POLL_SECONDS = 0.03


class Page:
    """Holds one page, and what it asked for and complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_SCRIPT)

    # ---- the protocol ----------------------------------------------------------------------------

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method; note the events that come before its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(_PATIENCE))
            if told.get("id") != self._number:
                self._note(told.get("method"), told.get("params", {}))
                continue
            assert "error" not in told, f"{method}: {told['error']}"
            result: dict[str, Any] = told["result"]
            return result

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    def run(self, expression: str) -> Any:
        """Run JavaScript in the page; a promise is waited for."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, f"{expression}: {done['exceptionDetails']}"
        return done["result"].get("value")

    # ---- what tests do ---------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && window.bl !== undefined")

    def go(self, name: str) -> None:
        """Open a page of the dashboard, and wait until it is there."""
        self.run(f"location.hash = {json.dumps(f'#/{name}')}")
        title = name.split("/")[0].capitalize()
        self.wait(f"document.querySelector('h1')?.textContent === {json.dumps(title)}")

    def wait(self, expression: str, seconds: float = _PATIENCE) -> Any:
        """Wait until an expression is true; return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"{expression}\n{self.run('bl.text()')}"
            time.sleep(_POLL_SECONDS)
        return value

    def see(self, text: str) -> None:
        """Wait until a text is shown."""
        self.wait(f"bl.text().includes({json.dumps(text)})")

    def click(self, name: str, role: str = "button", *, within: str | None = None) -> None:
        """Press what has this role and name, in the row that says ``within`` if that is given."""
        self.wait(f"bl.click(...{json.dumps([role, name, within])})")

    def fill(self, label: str, text: str) -> None:
        """Type a text into a field in place of what it holds."""
        self.wait(f"bl.focus({json.dumps(label)})")
        self.call("Input.insertText", text=text)

    def choose(self, label: str, value: str) -> None:
        """Give a list, a slider or another field a value."""
        self.wait(f"bl.choose({json.dumps(label)}, {json.dumps(value)})")

    def attach(self, label: str, path: Path) -> None:
        """Choose a file of this machine."""
        named = f"bl.find('field', {json.dumps(label)})"
        self.wait(named + " !== null")
        node = self.call("Runtime.evaluate", expression=named)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=node)

    # ---- how it looks ----------------------------------------------------------------------------

    def narrow(self) -> None:
        """Give it the screen of a phone."""
        self.screen(390, 844, phone=True)

    def desktop(self) -> None:
        self.screen(1280, 800, phone=False)

    def screen(self, width: int, height: int, *, phone: bool) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def scheme(self, name: str) -> None:
        """Let the system be ``light`` or ``dark``, and charts be drawn in its colours."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)
        for _ in range(3):
            self.run("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))")

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def page_at(socket_url: str) -> Iterator[Page]:
    """Attach to a page of a running browser."""
    with connect(socket_url, max_size=None, proxy=None, compression=None) as socket:
        page = Page(socket)
        page.desktop()
        yield page
