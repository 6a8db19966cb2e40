"""Tells where a command works: which home, and which server answers for it."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cli.errors import Failure

if TYPE_CHECKING:
    import ssl

    from bitinglip.home import Home
    from bitinglip.settings import Settings
    from cli.client import Client

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: an address to listen on everywhere, and where to find it on this machine
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


#: holds what a command's client needs, and the client, for as long as the process lives
UNTIL_THE_END = ExitStack()


@dataclass(frozen=True)
class CliContext:
    home: "Home"
    config: Path | None

    @classmethod
    def of(cls, home: Path | None, config: Path | None) -> "CliContext":
        from bitinglip.home import Home, resolve_home

        return cls(Home(resolve_home(home, os.environ)), config)

    def settings(self, sets: Sequence[str] = ()) -> "Settings":
        from bitinglip.settings_loader import load_settings

        return load_settings(config=self.config, home=self.home.root, environ=os.environ, sets=sets)

    def allows_pickles(self, name: str) -> bool:
        """Return whether the settings allow pickled weights for the model of this name."""
        return self.settings().model(name).allow_pickles

    def server(self) -> "Client | None":
        """Return the server to ask: the one in BITINGLIP_URL, else this home's if it runs."""
        if url := os.environ.get("BITINGLIP_URL"):
            return self._named(url.rstrip("/"))
        running = self.home.read_server_json()
        return None if running is None else self._own(str(running.get("url")))

    def need_server(self) -> "Client":
        if (client := self.server()) is not None:
            return client
        from bitinglip.home import HomeLock

        if HomeLock.is_held(self.home):
            raise Failure(f"the server on {self.home.root} is still starting; try again")
        raise Failure(f"no server is running on {self.home.root}; start one with `bitinglip serve`")

    def _named(self, url: str) -> "Client":
        from cli.client import Client

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failure(f"BITINGLIP_URL is {url!r}; write it as http://host:port")
        if parts.hostname in _LOOPBACK:
            return self._here(url)
        return _kept(Client(url, self._key(is_here=False), is_here=False))

    def _own(self, url: str) -> "Client":
        for listening, reachable in _EVERYWHERE.items():
            url = url.replace(f"//{listening}:", f"//{reachable}:")
        from cli.client import Client

        if (socket := self._open_socket()) is not None:
            return _kept(Client(url, self._key(is_here=True), socket=socket))
        return self._here(url)

    def _here(self, url: str) -> "Client":
        from cli.client import Client

        trust = self._own_certificate() if url.startswith("https:") else None
        return _kept(Client(url, self._key(is_here=True), is_here=True, trust=trust))

    def _open_socket(self) -> str | None:
        """Return the address of the home's Unix socket; None if no server answers there."""
        import socket

        from bitinglip.home import socket_address

        address = UNTIL_THE_END.enter_context(socket_address(self.home.socket))
        if address is None:
            return None
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(address)
            except OSError:
                return None
        return address

    def _key(self, *, is_here: bool) -> str | None:
        """Return BITINGLIP_API_KEY, else this home's admin key if the server is on this machine."""
        if key := os.environ.get("BITINGLIP_API_KEY", "").strip():
            return key
        try:
            return self.home.admin_key.read_text().strip() if is_here else None
        except (OSError, UnicodeDecodeError):
            return None

    def _own_certificate(self) -> "ssl.SSLContext | None":
        """Trust exactly the certificate of this home's server, whatever name it bears."""
        import ssl

        if (certificate := self.settings().server.tls_cert) is None:
            return None
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        return context


def _kept(client: "Client") -> "Client":
    UNTIL_THE_END.callback(client.close)
    return client
