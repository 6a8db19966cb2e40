"""Turns requests on OpenAI's surface into jobs, for their routes and for lines of batches alike."""

from collections.abc import Callable
from functools import partial

import msgspec

from bitinglip.access.keys import Caller
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job
from bitinglip.wire.embedding.openai import EmbeddingRequest
from bitinglip.wire.embedding.openai_view import EmbeddingView
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.model_lookup import check_embeds
from bitinglip.wire.openai_view import OpenAIView
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.length import check_length
from bitinglip.wire.text.openai import ChatCompletionRequest
from bitinglip.wire.text.openai_view import ChatView, CompletionView
from bitinglip.wire.text.switches import Switches
from model_store.manifest import Manifest

View = Callable[[EventLog], OpenAIView]


class Asking(msgspec.Struct):
    """Holds what a request has besides its body: who asks, and what the server knows of it."""

    caller: Caller
    model_of: Callable[[str, str], Manifest]  #: returns a model by name and kind, or raises
    context_of: Callable[[str], JobContext]  #: returns what a request for a model has
    request_id: str


class Prepared(msgspec.Struct):
    """Holds a job, what its answer is shown by, and fields that were ignored for this model.

    ``field``: the request's, which may hold pictures.
    """

    job: Job
    view: View
    ignored: list[str]
    manifest: Manifest
    field: str = "messages"


def prepare_text(asking: Asking, body: ChatCompletionRequest | CompletionRequest) -> Prepared:
    """Prepare a chat or a completion.

    Raises InvalidRequest, ContextLengthExceeded, or what is wrong with the model.
    """
    manifest, context = asking.model_of(body.model, "text"), asking.context_of(body.model)
    ignored: list[str] = []
    if isinstance(body, Switches):
        ignored = body.unknown_switches(manifest.template_switches)
    job = body.to_job(context)
    check_length(job, manifest, context.model_settings.max_context)
    shown = CompletionView if isinstance(body, CompletionRequest) else ChatView
    view = partial(shown, request_id=asking.request_id, include_usage=body.include_usage)
    return Prepared(job, view, ignored, manifest)


def prepare_embedding(asking: Asking, body: EmbeddingRequest) -> Prepared:
    """Prepare vectors of texts. Raises InvalidRequest, or what is wrong with the model."""
    manifest = asking.model_of(body.model, "embedding")
    check_embeds(manifest)
    encoding = body.encoding_format or "float"
    view = partial(EmbeddingView, request_id=asking.request_id, encoding=encoding)
    return Prepared(body.to_job(asking.context_of(body.model)), view, [], manifest)
