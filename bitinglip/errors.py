"""Declares every error that a client can meet, and the one table from error to status and code.

BitingLipError
 ├─ InvalidRequest ─ UnsupportedParameter, ContextLengthExceeded, HeadersTooLarge, RequestTimeout
 ├─ PersonalDataDetected, ContentFiltered
 ├─ InvalidApiKey, ExpiredApiKey, InvalidToken
 ├─ InsufficientScope, IpNotAllowed, ModelNotAllowed
 ├─ NotFound ─ InvalidModel, TaskNotFound, WorkerNotFound, KeyNotFound, FileGone,
 │             DownloadNotFound
 ├─ MethodNotAllowed, TaskCancelled
 ├─ Conflict ─ ModelInUse
 ├─ PayloadTooLarge, UnsupportedMediaType
 ├─ RateLimitExceeded, ConcurrencyLimitExceeded, QuotaExceeded
 ├─ InternalError, InferenceFailed, OutOfMemory
 ├─ ModelLoadFailed, WorkerCrashed, DownloadFailed
 ├─ Unavailable ─ Overloaded, QueueFull, ModelDoesNotFit, ShuttingDown, GuardFailed,
 │                DatabaseUnavailable
 └─ Timeout, DiskFull

A class's docstring is its default message. Raise these anywhere in the gateway; nothing else
builds an error answer. Status and codes: the contract, section 3.4.
"""

from typing import Any, NamedTuple

from workers.codes import Code


class BitingLipError(Exception):
    """Something went wrong."""

    retry_after: float | None = None  #: seconds; sent as Retry-After where it is set
    should_retry: bool | None = None  #: overrides what clients conclude from the status

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        super().__init__(self.message)
        self.param = param
        self.details = details or {}
        if retry_after is not None:
            self.retry_after = retry_after


class InvalidRequest(BitingLipError):
    """The request is not valid."""


class UnsupportedParameter(InvalidRequest):
    """This parameter is unknown, or not honoured for this model."""


class ContextLengthExceeded(InvalidRequest):
    """The prompt and max_tokens do not fit into the model's context."""


class HeadersTooLarge(InvalidRequest):
    """The request line and headers are too large."""


class RequestTimeout(InvalidRequest):
    """The request did not arrive in time."""


class PersonalDataDetected(BitingLipError):
    """The text holds personal data or secrets."""

    should_retry = False


class ContentFiltered(BitingLipError):
    """The text or picture holds what this server does not allow."""

    should_retry = False


class InvalidApiKey(BitingLipError):
    """The API key is missing or not valid. Send it as 'Authorization: Bearer <key>'."""


class ExpiredApiKey(BitingLipError):
    """The API key has expired."""


class InvalidToken(BitingLipError):
    """The token or ticket is not valid, has been used, or has expired."""


class InsufficientScope(BitingLipError):
    """The API key does not have the scope that this route needs."""


class IpNotAllowed(BitingLipError):
    """The API key may not be used from this address."""


class ModelNotAllowed(BitingLipError):
    """The API key may not use this model."""


class NotFound(BitingLipError):
    """There is nothing at this address."""


class InvalidModel(NotFound):
    """The specified model is not available."""


class TaskNotFound(NotFound):
    """There is no task with this id."""


class WorkerNotFound(NotFound):
    """There is no worker with this id."""


class KeyNotFound(NotFound):
    """There is no API key with this id."""


class FileGone(NotFound):
    """There is no file with this id; files expire."""


class DownloadNotFound(NotFound):
    """There is no download with this id; ended ones are forgotten after a time."""


class MethodNotAllowed(BitingLipError):
    """This address does not answer to this method."""


class Conflict(BitingLipError):
    """The request conflicts with the present state."""

    should_retry = False


class ModelInUse(Conflict):
    """The model is in use."""


class TaskCancelled(BitingLipError):
    """The task was cancelled."""

    should_retry = False


class PayloadTooLarge(BitingLipError):
    """The request's body is too large."""


class UnsupportedMediaType(BitingLipError):
    """The request's body must be JSON: send Content-Type: application/json."""


class RateLimitExceeded(BitingLipError):
    """This API key has sent too many requests; try again later."""


class ConcurrencyLimitExceeded(BitingLipError):
    """This API key has too many requests at once."""

    retry_after: float | None = 1.0


class QuotaExceeded(BitingLipError):
    """This API key has used up its quota."""

    should_retry = False


class InternalError(BitingLipError):
    """Something went wrong in the server; the log names the cause under this request id."""


class InferenceFailed(BitingLipError):
    """The model could not run this request."""

    should_retry = False


class OutOfMemory(BitingLipError):
    """The device ran out of memory on this request."""

    should_retry = False


class ModelLoadFailed(BitingLipError):
    """The model could not be loaded."""

    should_retry = False


class WorkerCrashed(BitingLipError):
    """The worker process died while it ran this request."""


class DownloadFailed(BitingLipError):
    """The download failed."""

    should_retry = False


class Unavailable(BitingLipError):
    """The server cannot take this request now."""

    retry_after: float | None = 1.0


class QueueFull(Unavailable):
    """Too many requests wait for this model."""


class Overloaded(Unavailable):
    """The server is too busy for work of low priority."""


class ModelDoesNotFit(Unavailable):
    """The model does not fit into the memory of any device."""

    retry_after = None

    @property
    def should_retry(self) -> bool | None:  # type: ignore[override]  # derived here
        """False unless it is known when there may be room."""
        return False if self.retry_after is None else None


class ShuttingDown(Unavailable):
    """The server is shutting down."""

    retry_after = 5.0


class DatabaseUnavailable(Unavailable):
    """The database cannot be used now; the server goes on without it and tries again."""

    retry_after = 5.0


class LimitsUnavailable(Unavailable):
    """The limits of API keys cannot be checked now; try again."""


class GuardFailed(Unavailable):
    """The text cannot be checked for personal data now, and does not pass unchecked."""

    retry_after = 5.0


class Timeout(BitingLipError):
    """The request did not finish in time."""


class DiskFull(BitingLipError):
    """There is not enough disk space."""

    should_retry = False


class Answer(NamedTuple):
    """Describes how an error looks from outside."""

    status: int
    code: Code
    type: str


_BAD = "invalid_request_error"
TABLE: dict[type[BitingLipError], Answer] = {
    InvalidRequest: Answer(400, "INVALID_REQUEST", _BAD),
    UnsupportedParameter: Answer(400, "UNSUPPORTED_PARAMETER", _BAD),
    ContextLengthExceeded: Answer(400, "CONTEXT_LENGTH_EXCEEDED", _BAD),
    PersonalDataDetected: Answer(400, "PII_DETECTED", _BAD),
    ContentFiltered: Answer(400, "CONTENT_FILTERED", _BAD),
    HeadersTooLarge: Answer(431, "INVALID_REQUEST", _BAD),
    RequestTimeout: Answer(408, "INVALID_REQUEST", _BAD),
    InvalidApiKey: Answer(401, "INVALID_API_KEY", "authentication_error"),
    ExpiredApiKey: Answer(401, "EXPIRED_API_KEY", "authentication_error"),
    InvalidToken: Answer(401, "INVALID_TOKEN", "authentication_error"),
    InsufficientScope: Answer(403, "INSUFFICIENT_SCOPE", "permission_error"),
    IpNotAllowed: Answer(403, "IP_NOT_ALLOWED", "permission_error"),
    ModelNotAllowed: Answer(403, "MODEL_NOT_ALLOWED", "permission_error"),
    NotFound: Answer(404, "NOT_FOUND", _BAD),
    InvalidModel: Answer(404, "INVALID_MODEL", _BAD),
    TaskNotFound: Answer(404, "TASK_NOT_FOUND", _BAD),
    WorkerNotFound: Answer(404, "WORKER_NOT_FOUND", _BAD),
    KeyNotFound: Answer(404, "KEY_NOT_FOUND", _BAD),
    FileGone: Answer(404, "FILE_NOT_FOUND", _BAD),
    MethodNotAllowed: Answer(405, "INVALID_REQUEST", _BAD),
    Conflict: Answer(409, "CONFLICT", _BAD),
    ModelInUse: Answer(409, "MODEL_IN_USE", _BAD),
    TaskCancelled: Answer(409, "TASK_CANCELLED", _BAD),
    PayloadTooLarge: Answer(413, "PAYLOAD_TOO_LARGE", _BAD),
    UnsupportedMediaType: Answer(415, "UNSUPPORTED_MEDIA_TYPE", _BAD),
    RateLimitExceeded: Answer(429, "RATE_LIMIT_EXCEEDED", "rate_limit_error"),
    ConcurrencyLimitExceeded: Answer(429, "CONCURRENCY_LIMIT_EXCEEDED", "rate_limit_error"),
    QuotaExceeded: Answer(429, "QUOTA_EXCEEDED", "rate_limit_error"),
    InternalError: Answer(500, "INTERNAL_ERROR", "server_error"),
    InferenceFailed: Answer(500, "INFERENCE_FAILED", "server_error"),
    OutOfMemory: Answer(500, "OUT_OF_MEMORY", "server_error"),
    ModelLoadFailed: Answer(502, "MODEL_LOAD_FAILED", "server_error"),
    WorkerCrashed: Answer(502, "WORKER_CRASHED", "server_error"),
    DownloadFailed: Answer(502, "DOWNLOAD_FAILED", "server_error"),
    Unavailable: Answer(503, "OVERLOADED", "overloaded_error"),
    Overloaded: Answer(503, "OVERLOADED", "overloaded_error"),
    QueueFull: Answer(503, "QUEUE_FULL", "overloaded_error"),
    ModelDoesNotFit: Answer(503, "MODEL_DOES_NOT_FIT", "overloaded_error"),
    ShuttingDown: Answer(503, "SHUTTING_DOWN", "service_unavailable"),
    GuardFailed: Answer(503, "OVERLOADED", "service_unavailable"),
    LimitsUnavailable: Answer(503, "OVERLOADED", "service_unavailable"),
    DatabaseUnavailable: Answer(503, "OVERLOADED", "service_unavailable"),
    Timeout: Answer(504, "TIMEOUT", "timeout"),
    DiskFull: Answer(507, "DISK_FULL", "server_error"),
}
_BY_CODE: dict[str, type[BitingLipError]] = {
    answer.code: error for error, answer in reversed(TABLE.items())
}


def answer(error: BitingLipError) -> Answer:
    """Return status, code and type of an error: its own row, else its nearest ancestor's."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            return TABLE[cls]
    return TABLE[InternalError]


def from_code(
    code: str,
    message: str,
    *,
    param: str | None = None,
    details: dict[str, Any] | None = None,
    retry_after: float | None = None,
) -> BitingLipError:
    """Return the error that a worker or the store names by its code."""
    kind = _BY_CODE.get(code, InternalError)
    return kind(message, param=param, details=details, retry_after=retry_after)
