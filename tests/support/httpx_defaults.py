"""Sets what httpx does by default to what tests need: patience, and one set of trusted roots."""

import functools
import inspect
import os
import ssl
from typing import Any

import httpx
from httpx._transports import default as transports

#: Requests that name no time-out of their own wait so long: the library's five seconds are less
#: than a busy machine may stand still.
PATIENCE_SECONDS = 60.0


def be_patient() -> None:
    default = inspect.signature(httpx.get).parameters["timeout"].default
    vars(default).update(vars(httpx.Timeout(PATIENCE_SECONDS)))


def read_roots_once() -> None:
    """Share the certificates that clients trust: each client reads them for 25 ms otherwise."""
    create = vars(transports)["create_ssl_context"]

    @functools.cache
    def shared(_file: str | None, _folder: str | None, trust_env: bool) -> ssl.SSLContext:
        made: ssl.SSLContext = create(trust_env=trust_env)
        return made

    def create_ssl_context(
        verify: Any = True, cert: Any = None, trust_env: bool = True
    ) -> ssl.SSLContext:
        if verify is True and cert is None:
            named = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
            return shared(*named, trust_env)
        made: ssl.SSLContext = create(verify=verify, cert=cert, trust_env=trust_env)
        return made

    vars(transports)["create_ssl_context"] = create_ssl_context
