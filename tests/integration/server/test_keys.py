"""Keys and tokens of a real server: what was answered survives a kill, and no secret is written."""

from pathlib import Path

import httpx

from tests.support.http_client import error_of
from tests.support.server import running_server

KEYS, TOKEN, REVOKE = "/api/v1/keys", "/api/v1/auth/token", "/api/v1/auth/revoke"
_QUIET = ("--set", "demo=never", "--set", "logging.level=debug")


def _status(url: str, secret: str) -> int:
    return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code


def test_key_changes_and_revocations_survive_a_kill(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with running_server(home, *_QUIET) as server, server.client() as admin:
        made = [admin.post(KEYS, json={"name": "n"}).json() for _ in range(4)]
        kept, changed, rotated, revoked = made
        headers = {"authorization": f"Bearer {kept['key']}"}
        tokens = [httpx.post(server.url + TOKEN, headers=headers).json() for _ in range(2)]
        admin.patch(f"{KEYS}/{changed['id']}", json={"models": ["x"], "tier": "pro"})
        new = admin.post(f"{KEYS}/{rotated['id']}/rotate", json={"grace": "0s"}).json()["key"]
        admin.delete(f"{KEYS}/{revoked['id']}")
        texts = [token["access_token"] for token in tokens]
        for wrong in (texts[0] + "x", kept["key"][:-1], f"x{kept['key']}"):
            assert _status(server.url, wrong) == 401
        for query in (f"?a={texts[0]}", f"?a={kept['key']}", f"?{texts[1]}"):
            error_of(httpx.get(f"{server.url}/v1/models{query}"), 400, "INVALID_REQUEST")
        assert admin.post(REVOKE, json={"token": texts[0]}).status_code == 204
        server.process.kill()  # right after its answer
        server.process.wait(60)
    with running_server(home, *_QUIET) as server, server.client() as admin:
        alive = [kept["key"], changed["key"], new, texts[1]]
        assert [_status(server.url, each) for each in alive] == [200] * 4
        ended = [rotated["key"], revoked["key"], texts[0]]
        assert [_status(server.url, each) for each in ended] == [401] * 3
        shown = admin.get(f"{KEYS}/{changed['id']}").json()
        assert (shown["models"], shown["tier"]) == (["x"], "pro")
    secrets = [each.rpartition("_")[2] for each in (*alive[:3], *ended[:2])]
    secrets += [text.rpartition(".")[2] for text in texts]
    for file in (server.log, *home.rglob("*")):
        if file.is_file() and file.name != "admin.key":
            data = file.read_bytes()
            assert not [each for each in secrets if each[:20].encode() in data], file
