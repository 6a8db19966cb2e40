"""Checks the certificate and key of HTTPS, and takes new ones in when their files change."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from bitinglip.file_stamp import FileStamp, file_stamp
from bitinglip.settings import Server
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.health import Health
from workers.secret_files import SecretFileRefused, check_secret_file

log = structlog.get_logger(__name__)

_WARN_BEFORE = timedelta(days=30)
CHECK_SECONDS = 12 * 3600.0  #: between two checks of a running server
LOOK_SECONDS = 5.0  #: between two looks at whether the files have changed
_PART = "TLS certificate"  #: in /health


class Certificate:
    """Holds the certificate that new connections are given; a broken new one changes nothing."""

    def __init__(self, server: Server) -> None:
        """Read the files, which ``check_tls`` has found good."""
        self._server = server
        self._seen = _stamps(server)
        self._context = _context(server)

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to be served with."""
        return self._context

    async def reload(self, health: Health) -> None:
        """Take the files in if they have changed; what cannot be used is told, once."""
        try:
            changed = await asyncio.to_thread(self._read_again)
        except SettingsError as error:
            for problem in error.problems:
                log.warning("the TLS certificate from before stays in use", problem=problem)
            detail = "the new certificate or key cannot be used; the one from before is in use"
            health.degrade("cluster_manager", _PART, detail)
        else:
            if changed:
                log.info("new connections are given the new TLS certificate")
                health.recover("cluster_manager", _PART)

    def _read_again(self) -> bool:
        """Return whether there is a new certificate. Raises SettingsError, once for each change."""
        stamps = _stamps(self._server)
        if stamps == self._seen:
            return False
        self._seen = stamps
        check_tls(self._server)
        try:
            self._context = _context(self._server)
        except OSError as error:  # they were changed once more, after the check
            raise SettingsError([f"server.tls_cert: {self._server.tls_cert} changes"]) from error
        return True


def _context(server: Server) -> ssl.SSLContext:
    assert server.tls_cert is not None, "HTTPS is off"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(server.tls_cert, server.tls_key)
    return context


def _stamps(server: Server) -> list[FileStamp]:
    """Return what tells one state of the files from another."""
    return [file_stamp(path) for path in (server.tls_cert, server.tls_key) if path is not None]


def check_tls(server: Server) -> list[str]:
    """Check that the files of HTTPS can be used, and return warnings about them.

    Raises SettingsError, which names the setting and the file. There is nothing to check without
    HTTPS.
    """
    if server.tls_cert is None or server.tls_key is None:
        return []
    cert, key = Path(server.tls_cert), Path(server.tls_key)
    try:
        cert.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingsError([f"server.tls_cert: {cert} cannot be read ({reason})"]) from error
    try:
        check_secret_file(key)
    except SecretFileRefused as error:
        raise SettingsError([f"server.tls_key: {error}"]) from None
    ends = _expiry(cert)
    _check_pair(cert, key)
    return _expiring(cert, ends)


async def warn(server: Server) -> None:
    """Log what is wrong, or soon will be, with the files of HTTPS."""
    try:
        warnings = await asyncio.to_thread(check_tls, server)
    except SettingsError as error:
        warnings = error.problems
    for warning in warnings:
        log.warning(warning)


def _expiry(cert: Path) -> datetime:
    """Return when the certificate, the first of its file, expires. Raises SettingsError."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(cert.read_bytes())[0].not_valid_after_utc
    except ValueError as error:
        problem = f"server.tls_cert: {cert} holds no certificate in PEM format"
        raise SettingsError([problem]) from error


def _check_pair(cert: Path, key: Path) -> None:
    def refuse_password() -> str:
        raise ValueError("the key is encrypted")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, refuse_password)
    except ssl.SSLError as error:
        problem = f"server.tls_key: {key} holds no private key in PEM format"
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"server.tls_key: {key} is not the key of the certificate in {cert}"
        raise SettingsError([problem]) from error
    except ValueError as error:
        problem = f"server.tls_key: {key} is encrypted; the server can only use an open key"
        raise SettingsError([problem]) from error


def _expiring(cert: Path, ends: datetime) -> list[str]:
    left = ends - datetime.now(UTC)
    if left <= timedelta():
        return [f"the TLS certificate {cert} has expired on {ends:%Y-%m-%d}; renew it"]
    if left <= _WARN_BEFORE:
        return [f"the TLS certificate {cert} expires on {ends:%Y-%m-%d}; renew it"]
    return []
