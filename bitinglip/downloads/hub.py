"""Holds how downloads reach the hub: its address, the server's own token, the share of the line."""

import os
from collections.abc import Mapping
from pathlib import Path

from bitinglip.downloads.download import Fault, Wanted
from bitinglip.downloads.process import network_environment
from bitinglip.errors import BitingLipError, DownloadFailed, answer
from bitinglip.settings import Settings
from bitinglip.settings.hub import Hub
from model_store.errors import StoreError, TokenRefused
from model_store.hub.messages import Order
from model_store.hub.tokens import check_token, find_token
from workers.secret_files import SecretFileRefused, read_secret_text


def hub_token(hub: Hub, environ: Mapping[str, str]) -> str | None:
    """Return the token of hub.token_file, else that of the environment. Raises TokenRefused."""
    if hub.token_file is None:
        return find_token(environ, login=hub.endpoint is None)
    try:
        text = read_secret_text(hub.token_file)
    except SecretFileRefused as error:
        raise TokenRefused(f"The file of hub.token_file {error.why}.") from None
    return check_token(text, "hub.token_file") if text else None


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

    def order(
        self, wanted: Wanted, share: int | None, bases: tuple[str, ...] | None = None
    ) -> Order:
        """Return the order for a download; reads the token's file.

        ``share`` is its bandwidth, in bytes per second; ``bases`` see ``Order``.

        Raises TokenRefused, or DownloadFailed as ``check`` does: a download may be older than the
        settings.
        """
        self.check()
        return Order(
            root=str(self._models),
            task=wanted.task,
            repo=wanted.repo,
            name=wanted.name,
            revision=wanted.revision,
            include=wanted.include,
            allow_pickles=wanted.allow_pickles or self._settings.model(wanted.name).allow_pickles,
            bases=bases,
            confine=self._settings.workers.confine,
            endpoint=self._settings.hub.endpoint,
            mirrors=tuple(self._settings.hub.mirrors),
            parallel=self._settings.hub.parallel,
            token=self._find_token(),
            bytes_per_second=share,
            min_bytes_per_second=self._settings.hub.min_bytes_per_second,
            environ=network_environment(os.environ),
        )

    def _find_token(self) -> str | None:
        """Return the server's own token. Raises TokenRefused."""
        return hub_token(self._settings.hub, {**os.environ, "HF_TOKEN": self._token or ""})

    def fault(self, error: BitingLipError | StoreError) -> Fault:
        """Return an error as a download keeps it."""
        code = error.code if isinstance(error, StoreError) else answer(error).code
        return Fault(code, error.message)
