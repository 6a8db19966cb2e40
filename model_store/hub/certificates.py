"""Decides which certificates of hubs are trusted, and says what to do about others.

Those that the environment names, else the authorities that come with Python's clients.
"""

import os
import ssl

import certifi

from model_store.errors import DownloadError

_OWN = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_BUNDLE = "REQUESTS_CA_BUNDLE"  #: a file or a folder; other clients of HTTP know it by this name


class Untrusted(DownloadError):
    """A host shows a certificate that is not trusted."""


def trusted() -> ssl.SSLContext:
    """Return what is trusted. Raises DownloadError for files that cannot be read."""
    file, folder = _named()
    try:
        if file is None and folder is None:
            file = certifi.where()
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:  # SSLError is one
        why = getattr(error, "reason", None) or error.strerror
        raise DownloadError(
            f"The certificates that SSL_CERT_FILE, SSL_CERT_DIR or {_BUNDLE} names cannot be read "
            f"({why})."
        ) from error


def tell_client() -> None:
    """Have the hub's own client trust the same, which knows some of the variables only."""
    if not any(os.environ.get(name) for name in _OWN):
        for name, value in zip(_OWN, _named(), strict=True):
            if value is not None:
                os.environ[name] = value


def refusal(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the refusal of a certificate that is an error, or its cause; else None."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def untrusted(error: ssl.SSLCertVerificationError, host: str) -> Untrusted:
    """Return the error to raise where a host's certificate is refused."""
    return Untrusted(
        f"The certificate of {host} is not trusted ({error.verify_message}). If it is of an "
        f"authority of your own, or of a proxy's, put that one's certificate into a file and name "
        f"it in SSL_CERT_FILE or {_BUNDLE} where the server or this command runs."
    )


def _named() -> tuple[str | None, str | None]:
    """Return the file and the folder of certificates that the environment names."""
    file, folder = (os.environ.get(name) or None for name in _OWN)
    if file is None and folder is None and (bundle := os.environ.get(_BUNDLE)):
        return (None, bundle) if os.path.isdir(bundle) else (bundle, None)
    return file, folder
