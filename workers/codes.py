"""Lists the error codes that workers, gateway and store name, typed so that mypy
finds a wrong one."""

from typing import Literal

#: The contract's error codes, which are those of the table in bitinglip.errors (a test compares).
Code = Literal[
    "CONCURRENCY_LIMIT_EXCEEDED",
    "CONFLICT",
    "CONTENT_FILTERED",
    "CONTEXT_LENGTH_EXCEEDED",
    "DISK_FULL",
    "DOWNLOAD_FAILED",
    "EXPIRED_API_KEY",
    "FILE_NOT_FOUND",
    "INFERENCE_FAILED",
    "INSUFFICIENT_SCOPE",
    "INTERNAL_ERROR",
    "INVALID_API_KEY",
    "INVALID_MODEL",
    "INVALID_REQUEST",
    "INVALID_TOKEN",
    "IP_NOT_ALLOWED",
    "KEY_NOT_FOUND",
    "MODEL_DOES_NOT_FIT",
    "MODEL_IN_USE",
    "MODEL_LOAD_FAILED",
    "MODEL_NOT_ALLOWED",
    "NOT_FOUND",
    "OUT_OF_MEMORY",
    "OVERLOADED",
    "PAYLOAD_TOO_LARGE",
    "PII_DETECTED",
    "QUEUE_FULL",
    "QUOTA_EXCEEDED",
    "RATE_LIMIT_EXCEEDED",
    "SHUTTING_DOWN",
    "TASK_CANCELLED",
    "TASK_NOT_FOUND",
    "TIMEOUT",
    "UNSUPPORTED_MEDIA_TYPE",
    "UNSUPPORTED_PARAMETER",
    "WORKER_CRASHED",
    "WORKER_NOT_FOUND",
]

#: The code of a load that another process can do: this one's cards cannot be chosen any more.
DRIVER_STARTED: Literal["DRIVER_STARTED"] = "DRIVER_STARTED"
#: The code of a load for whose memory its node has no room any more: it is planned again.
NOT_GRANTED: Literal["NOT_GRANTED"] = "NOT_GRANTED"
LoadCode = Literal[Code, "DRIVER_STARTED", "NOT_GRANTED"]
