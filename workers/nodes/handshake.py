"""Encrypts a connection between gateway and agent; each proves to the other that it has the secret.

TLS 1.3 with a certificate that the agent makes at its start. Nothing signs it: both prove in the
encrypted connection that they know the secret, over random numbers of both and the certificate, so
that a machine in between, which would have another certificate, fails.
"""

import hashlib
import hmac
import os
import ssl
import tempfile
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from workers.secret_files import SecretFileRefused, read_secret_text

MAGIC = b"bitinglip agent\n"
SECONDS = 10.0  #: that a handshake may take
LEAST_SECRET = 16  #: characters
_NONCE_BYTES = 32
_NAME = "bitinglip agent"
_YEARS = timedelta(days=3650)


class NotTrusted(Exception):
    """The other side does not know the secret, or is no side of this protocol."""


class BadSecret(Exception):
    """The file of the secret cannot be used; the message says why."""


def read_secret(path: str) -> str:
    """Read the secret of a cluster from its file. Raises BadSecret."""
    try:
        secret = read_secret_text(path)
    except SecretFileRefused as error:
        raise BadSecret(str(error)) from None
    if len(secret) < LEAST_SECRET:
        raise BadSecret(f"The secret in {path} has fewer than {LEAST_SECRET} characters.")
    return secret


class AgentIdentity:
    """Holds an agent's certificate, for as long as the agent runs."""

    def __init__(self, folder: Path) -> None:
        """Make it; for a moment its key lies in a file of ``folder``. Raises OSError."""
        # Here, as only agents need it: it is a noticeable part of a server's start.
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + _YEARS)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ) + certificate.public_bytes(serialization.Encoding.PEM)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        with tempfile.NamedTemporaryFile(dir=folder) as file:  # the module ssl reads files only
            file.write(pem)
            file.flush()
            self.context.load_cert_chain(file.name)
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)


def client_context() -> ssl.SSLContext:
    """Return a context that encrypts; whom it speaks to is proved by the secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def prove_to_gateway(
    reader: StreamReader, writer: StreamWriter, secret: str, certificate: bytes
) -> None:
    """Run the agent's side. Raises NotTrusted; the caller bounds the time."""
    nonce = os.urandom(_NONCE_BYTES)
    writer.write(MAGIC + nonce)
    theirs = await _read(reader, _NONCE_BYTES)
    proof = await _read(reader, hashlib.sha256().digest_size)
    proofs = _Proofs(secret, nonce, theirs, certificate)
    if not hmac.compare_digest(proof, proofs.gateway):
        raise NotTrusted("a connection was refused: its secret is another one")
    writer.write(proofs.agent)


async def prove_to_agent(reader: StreamReader, writer: StreamWriter, secret: str) -> None:
    """Run the gateway's side. Raises NotTrusted, or OSError for an end before the proofs are
    exchanged; the caller bounds the time."""
    channel = writer.get_extra_info("ssl_object")
    certificate = channel.getpeercert(binary_form=True)
    try:
        hello = await reader.readexactly(len(MAGIC) + _NONCE_BYTES)
    except IncompleteReadError as error:
        raise ConnectionResetError("the connection was closed") from error
    if not hello.startswith(MAGIC):
        raise NotTrusted("what listens there is no agent")
    theirs = hello[len(MAGIC) :]
    nonce = os.urandom(_NONCE_BYTES)
    proofs = _Proofs(secret, theirs, nonce, certificate)
    writer.write(nonce + proofs.gateway)
    if not hmac.compare_digest(await _read(reader, len(proofs.agent)), proofs.agent):
        raise NotTrusted("the agent does not know the secret of this gateway")


class _Proofs:
    def __init__(self, secret: str, agents: bytes, gateways: bytes, certificate: bytes) -> None:
        said = agents + gateways + hashlib.sha256(certificate).digest()
        self.gateway = hmac.digest(secret.encode(), b"gateway" + said, "sha256")
        self.agent = hmac.digest(secret.encode(), b"agent" + said, "sha256")


async def _read(reader: StreamReader, size: int) -> bytes:
    try:
        return await reader.readexactly(size)
    except IncompleteReadError as error:
        raise NotTrusted("the connection was closed: the other side has another secret") from error
