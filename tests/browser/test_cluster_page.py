"""The dashboard's page of other machines, over agents of nodes and servers that are there."""

import re
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.browser.conftest import check_quiet, keep_picture, sign_in
from tests.support.api_server import ADMIN, Served, serve
from tests.support.browser.axe import serious_findings
from tests.support.browser.page import Page
from tests.support.cluster import SECRET, StaticAgents, agents
from tests.support.server import Server
from tests.support.wait import eventually

pytestmark = pytest.mark.long_file

AWAY = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """Yield a server with a node that is well, one that has ended, and a model of other servers, of
    which one is away; and the address of the other one."""
    folder = tmp_path_factory.mktemp("cluster")
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    workers = {"launcher": "ray", "ray": {"secret_file": str(secret)}}
    home = folder / "home"
    with (
        serve(folder / "other") as other,
        agents(home, "n1", fake=()) as well,
        agents(home, "n2") as cards,
    ):
        nodes = {**well, **cards}
        (folder / "key").touch(0o600)
        (folder / "key").write_text(other.keys[ADMIN])
        upstream = {"url": [f"{other.url}/v1", AWAY], "model": "demo"}
        models = {"far": {"upstream": {**upstream, "key_file": str(folder / "key")}}}
        with serve(folder, agents=StaticAgents(nodes), workers=workers, models=models) as served:
            headers = served.headers(ADMIN)
            asked = httpx.post(f"{served.url}/api/v1/models/far/load", headers=headers, timeout=60)
            asked.raise_for_status()
            nodes["n2"].process.send_signal(signal.SIGKILL)

            def is_lost() -> bool:
                status = httpx.get(f"{served.url}/api/v1/cluster/status", headers=headers).json()
                return [each["state"] for each in status["nodes"]] == ["well", "lost"]

            eventually(is_lost)
            yield served, other.url


def test_dashboard_shows_nodes_and_the_servers_behind_models(
    page: Page, server: Server, elsewhere: tuple[Served, str], screen: str
) -> None:
    there, behind = elsewhere
    page.go("cluster")
    for told in ("No other machine", "No other gateway", "No other server"):
        page.see(told)
    keep_picture(page, f"cluster-empty-{screen}")
    check_quiet(page, server)
    page.open(there.url)
    page.fill("API key", there.keys[ADMIN])
    page.click("Sign in")
    page.wait("document.querySelector('h1')?.textContent === 'Overview'")
    card = "[...document.querySelectorAll('article')].find((a) => a.innerText.includes('n2:fake0'))"
    page.wait(f"{card}?.innerText.includes('free ? of 8.0 GB')")
    assert "other programs" not in page.run(f"{card}.innerText")
    page.go("cluster")
    page.wait("bl.row('n1')?.innerText.includes('well')")
    assert "no card" in page.run("bl.row('n1').innerText")
    ram = page.run("bl.row('n1').querySelector('[data-label=\"RAM free\"]').innerText")
    assert re.fullmatch(r"[\d.]+ GB of [\d.]+ GB", ram)
    lost = page.run("bl.row('n2').innerText")
    for told in ("lost", "The node ", "n2:fake0", "? of 8.0 GB free"):
        assert told in lost
    assert re.search(r" ago$|just now$", lost)
    assert "well" in page.run(f"bl.row('{behind}').innerText")
    assert "failing" in page.run(f"bl.row('{AWAY}').innerText")
    assert serious_findings(page) == []
    keep_picture(page, f"cluster-{screen}")
    assert page.run("bl.overflow()") <= 0
    page.run("sessionStorage.clear()")
    check_quiet(page, there)
    sign_in(page, server)
