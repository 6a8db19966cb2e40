"""Pulls from hubs that speak HTTPS with certificates of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from model_store.errors import DownloadError
from model_store.hub.certificates import Untrusted
from model_store.store import ModelStore
from tests.support.certificates import make_certificate
from tests.support.hub import REPO, FakeHub, Fault, serve
from tests.support.model_folders import llama
from tests.support.pulls import WEIGHTS, pulled, refused

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]
) -> Iterator[FakeHub]:
    folder = llama(tmp_path_factory.mktemp("origin") / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serve(FakeHub(files), certificate) as hub:
        yield hub


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test without the variables of certificates; the hub's client reads them once for a
    session."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    close_session()
    yield
    close_session()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificate_of_an_own_authority_is_trusted_by_the_environment(
    store: ModelStore, hub: FakeHub, certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch, variable: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, str(certificate[0]))
    pulled(store, hub)
    assert store.verify(REPO) == []


def test_certificate_that_is_not_trusted_ends_the_pull_with_what_to_do(
    store: ModelStore, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in ("", str(make_certificate(tmp_path, name="other")[0])):
        monkeypatch.setenv("SSL_CERT_FILE", named)
        close_session()
        said = refused(store, hub, DownloadError)
        assert said.startswith(f"The certificate of {hub.url.removeprefix('https://')} is not tru")
        assert "REQUESTS_CA_BUNDLE" in said


def test_certificate_of_a_host_that_brings_the_files_is_looked_at(
    store: ModelStore, hub: FakeHub, certificate: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with serve(FakeHub(hub.files), make_certificate(tmp_path)) as other:
        hub.near_faults[WEIGHTS] = Fault(times=-1, to=other.far_url)
        try:
            assert "127.0.0.1 is not trusted" in refused(store, hub, Untrusted)
        finally:
            hub.near_faults.clear()


def test_certificate_file_that_holds_none_ends_the_pull(
    store: ModelStore, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that holds none: it is looked at, and what is wrong with it ends the pull."""
    (tmp_path / "empty.pem").write_text("")
    for path in (tmp_path / "empty.pem", tmp_path / "none.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert "SSL_CERT_FILE" in refused(store, hub, DownloadError)
