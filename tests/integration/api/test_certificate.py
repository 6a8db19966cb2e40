"""A certificate whose files change while the server runs."""

import asyncio
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from bitinglip import tls
from bitinglip.settings import Server
from bitinglip.tls import Certificate
from tests.support.api_server import Served, serve
from tests.support.certificates import make_certificate
from tests.support.logs import capture_log


@dataclass
class Https:
    served: Served
    certificate: Certificate
    cert: Path
    key: Path

    def shown(self) -> int:
        """Return the serial number of the certificate that a new connection is given."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.served.port), timeout=60) as sock,
            context.wrap_socket(sock) as secure,
        ):
            found = secure.getpeercert(binary_form=True)
        assert found is not None
        return x509.load_der_x509_certificate(found).serial_number

    def reload(self) -> None:
        looking = self.certificate.reload(self.served.services.health)
        asyncio.run_coroutine_threadsafe(looking, self.served.loop).result(60)

    def replace(self, cert: Path, key: Path) -> None:
        """Move new files over the old ones, as programs that renew certificates do."""
        for new, old in ((cert, self.cert), (key, self.key)):
            Path(shutil.copy(new, old.with_suffix(".new"))).rename(old)

    def problems(self) -> str:
        return self.served.services.health.problems().get("cluster_manager", "")


def _serial(cert: Path) -> int:
    return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number


@pytest.fixture
def https(tmp_path: Path) -> Iterator[Https]:
    cert, key = make_certificate(tmp_path)
    certificate = Certificate(Server(tls_cert=str(cert), tls_key=str(key)))
    with serve(tmp_path, certificate=certificate) as served:
        yield Https(served, certificate, cert, key)


def test_certificate_that_is_renewed_is_given_to_new_connections(
    https: Https, tmp_path: Path
) -> None:
    old = _serial(https.cert)
    trust = ssl.create_default_context(cafile=https.cert)
    with httpx.Client(base_url=https.served.url, verify=trust) as client:
        assert client.get("/livez").status_code == 200
        assert https.shown() == old
        https.reload()
        assert https.shown() == old
        new, key = make_certificate(tmp_path, name="new")
        https.replace(new, key)
        https.reload()
        assert https.shown() == _serial(new) != old
        assert client.get("/livez").status_code == 200  # on the connection from before
    assert https.problems() == ""


def test_certificate_that_is_broken_changes_nothing_and_is_told(
    https: Https, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _serial(https.cert)
    good = (
        Path(shutil.copy(https.cert, tmp_path / "1")),
        Path(shutil.copy(https.key, tmp_path / "2")),
    )
    new, new_key = make_certificate(tmp_path, name="new")
    shutil.copy(new, https.cert)  # the key is still the old one
    log = capture_log(monkeypatch, tls)
    for _ in range(2):
        https.reload()
    assert https.shown() == old
    assert "the one from before is in use" in https.problems()
    assert str(tmp_path) not in https.problems()
    [told] = [each for each in log.entries if "stays in use" in each["event"]]
    assert "is not the key of the certificate" in told["problem"]
    https.key.unlink()
    https.reload()
    assert https.shown() == old
    https.replace(new, new_key)
    https.reload()
    assert (https.shown(), https.problems()) == (_serial(new), "")
    https.cert.write_bytes(b"nonsense")
    https.reload()
    assert https.problems()
    https.replace(*good)
    https.reload()
    assert (https.shown(), https.problems()) == (old, "")
