"""Checks how the server meets its network: HTTPS, and what it takes for a local request."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.checks.findings import Finding

if TYPE_CHECKING:
    from bitinglip.settings import Server


def every_door(server: "Server") -> Iterator[Finding]:
    yield from _tls(server)
    yield _loopback(server)


def _tls(server: "Server") -> Iterator[Finding]:
    from bitinglip.settings_loader import SettingsError
    from bitinglip.tls import check_tls

    if server.tls_cert is None:
        return
    try:
        warnings = check_tls(server)
    except SettingsError as error:
        yield Finding("tls", "error", "; ".join(error.problems), "correct the settings or the file")
        return
    for warning in warnings:
        problem, _, advice = warning.partition("; ")
        yield Finding("tls", "warning", problem, advice)
    if not warnings:
        yield Finding("tls", "ok", f"{server.tls_cert} and its key can be used")


def _loopback(server: "Server") -> Finding:
    """Find a reverse proxy on this machine that makes remote clients look local."""
    from bitinglip.api.hosts import is_loopback, normal_name

    if not server.trust_loopback:
        return Finding("loopback", "ok", "only the home's Unix socket is local")
    names = [name for name in server.allowed_hosts if not is_loopback(normal_name(name))]
    if names and is_loopback(normal_name(server.host)):
        return Finding(
            "loopback",
            "warning",
            f"it listens on loopback only, yet serves {', '.join(names)}: behind a reverse proxy, "
            "all clients may read /metrics",
            "set server.trust_loopback to false",
        )
    return Finding("loopback", "ok", "requests from loopback are local ones; no proxy is expected")
