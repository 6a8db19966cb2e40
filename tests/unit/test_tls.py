"""The check of HTTPS: each problem names its file, and each risk is a warning."""

import ssl
from pathlib import Path

import pytest

from bitinglip.settings import Server
from bitinglip.settings_loader import SettingsError
from bitinglip.tls import Certificate, check_tls
from cli.checks.doors import every_door
from tests.support.certificates import make_certificate


def https(cert: Path, key: Path) -> Server:
    return Server(tls_cert=str(cert), tls_key=str(key))


def test_tls_check_passes_a_good_pair_and_plain_http(tmp_path: Path) -> None:
    assert check_tls(https(*make_certificate(tmp_path))) == []
    assert check_tls(Server()) == []


def test_tls_check_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    nowhere = tmp_path / "nowhere.pem"
    for setting, server in [
        ("server.tls_cert", https(nowhere, key)),
        ("server.tls_key", https(cert, nowhere)),
        ("server.tls_key", https(cert, tmp_path)),
    ]:
        with pytest.raises(SettingsError) as refused:
            check_tls(server)
        [problem] = refused.value.problems
        wrong = server.tls_cert if setting == "server.tls_cert" else server.tls_key
        assert problem.startswith(f"{setting}: {wrong} cannot be read (")


def test_tls_check_refuses_what_is_no_pair(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, name="other")
    _, locked = make_certificate(tmp_path, name="locked", password=b"secret")
    text = tmp_path / "text.pem"
    text.touch(0o600)
    text.write_text("hello")
    cert.chmod(0o600)
    for server, expected in [
        (https(text, key), f"{text} holds no certificate"),
        (https(cert, text), f"{text} holds no private key"),
        (https(cert, other), f"{other} is not the key of the certificate in {cert}"),
        (https(cert, locked), f"{locked} is encrypted"),
        (https(key, cert), f"{key} holds no certificate"),
    ]:
        with pytest.raises(SettingsError, match=expected.replace("/", "[/]")):
            check_tls(server)


@pytest.mark.parametrize(
    ("days", "expected"), [(29, "expires on"), (-1, "has expired on"), (31, None)]
)
def test_tls_check_warns_of_the_expiry(tmp_path: Path, days: float, expected: str | None) -> None:
    cert, key = make_certificate(tmp_path, days=days)
    warnings = check_tls(https(cert, key))
    assert [f"{cert} {expected}" in each for each in warnings] == ([True] if expected else [])


def test_tls_check_refuses_a_key_that_others_may_read_and_takes_a_group_s_link(
    tmp_path: Path,
) -> None:
    cert, key = make_certificate(tmp_path)
    (link := tmp_path / "link.key").symlink_to(key)
    key.chmod(0o640)
    assert check_tls(https(cert, link)) == []
    key.chmod(0o644)
    with pytest.raises(SettingsError) as refused:
        check_tls(https(cert, link))
    [problem] = refused.value.problems
    assert problem.startswith(f"server.tls_key: {link} holds a secret that others may read")


def test_doctor_reports_tls_and_a_proxy_before_loopback(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, days=3)
    pair = {"tls_cert": str(cert), "tls_key": str(key)}
    for server, expected in [
        (Server(), [("loopback", "ok")]),
        (https(cert, key), [("tls", "warning"), ("loopback", "ok")]),
        (Server.model_validate({**pair, "tls_key": "/nowhere"}), [("tls", "error")]),
        (Server(allowed_hosts=["api.example"]), [("loopback", "warning")]),
        (Server(allowed_hosts=["api.example"], trust_loopback=False), [("loopback", "ok")]),
        (Server(allowed_hosts=["localhost"]), [("loopback", "ok")]),
    ]:
        found = [(each.check, each.level) for each in every_door(server)]
        assert [each for each in found if each in expected] == expected


def test_tls_older_than_1_2_is_not_spoken(tmp_path: Path) -> None:
    context = Certificate(https(*make_certificate(tmp_path))).context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED
