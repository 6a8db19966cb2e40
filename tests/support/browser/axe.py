"""Looks for what keeps people from using a page, by axe-core."""

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path

from tests.support.browser.page import Page

_VENDOR = Path(__file__).parents[1] / "vendor"
_SERIOUS = ("serious", "critical")
_RUN = "axe.run(document, {resultTypes: ['violations'], elementRef: false})"


@cache
def _script() -> str:
    [library] = json.loads((_VENDOR / "manifest.json").read_text())
    [(name, told)] = library["files"].items()
    body = gzip.decompress((_VENDOR / name).read_bytes())
    assert hashlib.sha256(body).hexdigest() == told["sha256"]
    return body.decode()


def serious_findings(page: Page) -> list[str]:
    """Return what axe finds in a page that is serious or worse."""
    if not page.run("window.axe !== undefined"):
        page.run(f"{_script()};0")
    found, passed = page.run(f"{_RUN}.then((found) => [found.violations, found.passes.length])")
    assert passed > 10, "it has looked at hardly anything"
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in _SERIOUS
    ]
