"""Ways to Redis: TLS with certificates, users with few rights, and what is no single server."""

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from bitinglip.redis.link import RedisLink
from bitinglip.redis.messages import RowsChanged
from bitinglip.redis.remote import RedisBroadcast
from bitinglip.settings import Settings
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.health import Health
from cli.checks.redis import redis as redis_check
from tests.support.certificates import make_certificate
from tests.support.redis import RedisServer, running_redis
from tests.support.shared_limits import gateways
from tests.support.wait import until

#: what docs/redis.md says that a user needs
RIGHTS = (
    "~bitinglip:* &bitinglip:* -@all +@read +@write +@scripting +@pubsub +@connection +time +info"
)
_LIMITS = {"requests_per_minute": 50, "requests_per_hour": None, "daily": {"tokens": 1000}}


def why_away(url: str) -> str | None:
    """Return what is said of a Redis that cannot be used; None of one that can."""

    async def run() -> str | None:
        link = await RedisLink.opened(RedisSettings(url=url, timeout_ms=2000), Health())
        try:
            return link.away
        finally:
            await link.close()

    return asyncio.run(run())


def works(url: str, folder: Path) -> None:
    """Take from limits and quotas, and have another gateway hear of a change."""

    async def run() -> None:
        async with gateways(folder, 2, url, _LIMITS) as both:
            assert await both[0].use(10)
            assert await both[1].passes()
            heard = []

            async def hear(_: RowsChanged | None = None) -> None:
                heard.append(True)

            links = [each.link for each in both if each.link is not None]
            one, two = (RedisBroadcast(link) for link in links)
            two.subscribe(RowsChanged, hear, hear)
            await until(lambda: heard)
            one.publish(RowsChanged())
            await until(lambda: len(heard) == 2)
            await two.close()
            assert all(link.away is None for link in links)

    asyncio.run(run())


class Secured:
    """A Redis that takes clients with a certificate of its authority only."""

    def __init__(self, server: RedisServer, port: int, folder: Path) -> None:
        self.server = server
        self.address = f"127.0.0.1:{port}/0"
        self.authority = folder / "server.crt"
        self.client = {
            "ssl_certfile": str(folder / "client.crt"),
            "ssl_keyfile": str(folder / "client.key"),
        }

    def url(self, **files: str) -> str:
        files = {"ssl_ca_certs": str(self.authority), **self.client, **files}
        return f"rediss://{self.address}?" + urlencode({k: v for k, v in files.items() if v})


def knows_tls(program: str) -> bool:
    """Return whether a server was built with TLS: without a certificate, neither kind starts."""
    asked = [program, "--port", "0", "--tls-port", "1"]
    refused = subprocess.run(asked, check=False, capture_output=True, text=True)
    return "Failed finding TLS support" not in refused.stdout


@pytest.fixture(scope="module")
def secured(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if not knows_tls(redis.program):
        pytest.skip("this server was built without TLS")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = make_certificate(folder, name="server")
    trusted, _ = make_certificate(folder, name="client")
    make_certificate(folder, name="other")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    trust = ("--tls-ca-cert-file", str(trusted), "--tls-auth-clients", "yes")
    with running_redis(redis.program, *options, *trust) as server:
        yield Secured(server, port, folder)


def test_redis_over_tls_is_used_by_clients_with_a_certificate(
    secured: Secured, tmp_path: Path
) -> None:
    works(secured.url(), tmp_path)
    settings = Settings.model_validate({"redis": {"url": secured.url()}})
    [found] = redis_check(settings)
    assert found.level == "ok"


def test_redis_whose_certificate_is_not_trusted_is_away_and_says_so(secured: Secured) -> None:
    other = str(secured.authority.with_name("other.crt"))
    assert "certificate is not trusted" in (why_away(secured.url(ssl_ca_certs=other)) or "")
    assert "certificate is not trusted" in (why_away(secured.url(ssl_ca_certs="")) or "")
    named = secured.url().replace("127.0.0.1", "127.0.0.2")
    assert "for another name" in (why_away(named) or "")
    assert why_away(secured.url(ssl_certfile="", ssl_keyfile="")) is not None
    plain = secured.url().replace("rediss", "redis").partition("?")[0]
    assert why_away(plain) is not None


def test_files_of_tls_that_cannot_be_used_are_named_at_the_start(secured: Secured) -> None:
    missing, authority = "/nowhere/file", str(secured.authority)
    open_key = secured.authority.with_name("open.key")
    open_key.write_bytes(Path(secured.client["ssl_keyfile"]).read_bytes())
    open_key.chmod(0o644)
    for files, said in [
        ({"ssl_ca_certs": missing}, r"ssl_ca_certs cannot be used \(No such file"),
        ({"ssl_ca_certs": str(open_key)}, r"ssl_ca_certs cannot be used \(no PEM"),
        ({"ssl_keyfile": missing}, r"ssl_keyfile: /nowhere/file cannot be read"),
        ({"ssl_keyfile": str(open_key)}, r"ssl_keyfile: .*others may read"),
        ({"ssl_certfile": missing}, r"ssl_certfile cannot be used \(No such file"),
        ({"ssl_certfile": authority}, r"ssl_certfile cannot be used \(no PEM"),
    ]:
        with pytest.raises(SettingsError, match=said):
            RedisLink(RedisSettings(url=secured.url(**files)), Health())


def test_user_of_redis_needs_the_rights_that_are_documented_and_no_others(
    redis: RedisServer, tmp_path: Path
) -> None:
    text = Path(__file__).parents[3].joinpath("docs/redis.md").read_text()
    assert RIGHTS in text
    redis.flush()
    with redis.client() as client:
        client.execute_command("ACL", "SETUSER", "lip", "on", ">s3cret", *RIGHTS.split())
        client.execute_command("ACL", "SETUSER", "few", "on", ">s3cret", "~*", "+@connection")
    works(f"unix://lip:s3cret@{redis.socket}", tmp_path)
    assert "refuses its user the right" in (why_away(f"unix://few:s3cret@{redis.socket}") or "")


@pytest.mark.parametrize("mode", ["cluster", "sentinel"])
def test_redis_that_is_no_single_server_is_named_as_such(
    redis: RedisServer, tmp_path: Path, mode: str
) -> None:
    (config := tmp_path / "sentinel.conf").touch()
    options = ("--cluster-enabled", "yes") if mode == "cluster" else (str(config), "--sentinel")
    with running_redis(redis.program, *options) as server:
        away = why_away(server.url) or ""
        assert {"cluster": "Redis Cluster", "sentinel": "Sentinel"}[mode] in away
        [found] = redis_check(Settings.model_validate({"redis": {"url": server.url}}))
        assert (found.level, f"is a {mode}" in found.detail) == ("error", True)
