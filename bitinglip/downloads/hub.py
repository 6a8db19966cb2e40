"""How downloads reach the hub: its address, the server's own token, the share of the line."""

import os
from pathlib import Path

from bitinglip.downloads.download import Fault, Wanted
from bitinglip.downloads.process import network_environment
from bitinglip.errors import BitingLipError, DownloadFailed, answer
from bitinglip.settings import Settings
from model_store.errors import StoreError
from model_store.pull_messages import Order


class HubAccess:
    """Makes the orders of the processes that pull into the folder ``models``.

    ``token`` is what the environment held; no request brings one, and no row keeps one.
    """

    def __init__(self, settings: Settings, models: Path, token: str | None) -> None:
        self._settings = settings
        self._models = models
        self._token = token

    def check(self) -> None:
        """Raise DownloadFailed where the settings keep the server off the hub."""
        if self._settings.hub.offline:
            raise DownloadFailed(
                "The settings say hub.offline, so nothing is asked of the hub; models can be "
                "imported from a folder."
            )

    def order(self, wanted: Wanted) -> Order:
        """Return the order for a download; reads the token's file. Raises DownloadFailed."""
        hub = self._settings.hub
        share = hub.bytes_per_second
        return Order(
            root=str(self._models),
            repo=wanted.repo,
            name=wanted.name,
            revision=wanted.revision,
            include=wanted.include,
            allow_pickles=wanted.allow_pickles or self._settings.model(wanted.name).allow_pickles,
            confine=self._settings.workers.confine,
            endpoint=hub.endpoint,
            token=self._read_token(),
            bytes_per_second=None if share is None else max(1, share // hub.max_downloads),
            environ=network_environment(os.environ),
        )

    def _read_token(self) -> str | None:
        if (path := self._settings.hub.token_file) is None:
            return self._token
        try:
            text = Path(path).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise DownloadFailed("The server cannot read the file in hub.token_file.") from None
        return text or None

    def fault(self, error: BitingLipError | StoreError) -> Fault:
        """Return an error as a download keeps it."""
        code = error.code if isinstance(error, StoreError) else answer(error).code
        return Fault(code, error.message)
