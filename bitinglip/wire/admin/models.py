"""Shows models in the native and OpenAI's list, and declares the request that imports one."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import Field

from bitinglip.scheduling.placement.estimate import own_dtype
from bitinglip.wire.body import Body
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.schema import schema_of
from model_store.adapters import missing_base
from model_store.manifest import ADAPTER, RERANK, Manifest
from model_store.sizes import size_text
from model_store.voices import voices_of
from workers import protocol

#: parameters that these engines refuse
_NOT_BY = {
    "fake": {"logprobs", "logit_bias"},
    "upstream": {
        *("logprobs", "typical_p", "continue_final_message", "add_generation_prompt"),
        *("regex", "choice", "grammar", "prompt_name"),
        *("loras", "preview"),
    },
}
#: parameters that models of these families do not have, although others of their kind do
_NOT_OF = {"bark": {"speed"}, "speecht5": {"speed", "language"}}
_TASKS = {
    "text": "text-generation",
    "image": "text-to-image",
    "speech": "text-to-speech",
    "transcription": "automatic-speech-recognition",
    "embedding": "feature-extraction",
}
_NOT_PARAMETERS = frozenset({"model", "stream", "timeout", "async", "priority"})


class ImportModelRequest(Body):
    """The body of ``POST /models/import``: a folder of the server's machine."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    allow_pickles: bool = False
    base: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Of an adapter: its base's name here, if its files name another."
    )


def model_type(manifest: Manifest) -> str:
    """Name what a model makes, in the design's words: text, image, audio or embedding."""
    kind = _kind(manifest)
    if kind in KINDS:
        return KINDS[kind].api_type
    return "audio" if kind == "vocoder" else kind


def _kind(manifest: Manifest) -> str:
    if manifest.kind == ADAPTER:  # without its base; with it, it is of the base's kind
        return manifest.engine
    return "text" if manifest.engine == "fake" else manifest.kind


def task_of(manifest: Manifest) -> str | None:
    """Name what a model does in the words of the hub's ``pipeline_tag``."""
    if RERANK in manifest.capabilities:
        return "text-ranking"
    return _TASKS.get(_kind(manifest))


def copy_info(copying: protocol.CopyProgress | None) -> dict[str, Any] | None:
    """Describe how a model's files come to the node that is to load it."""
    if copying is None:
        return None
    return {"node": copying.node, "bytes": copying.bytes, "total_bytes": copying.total}


def model_info(
    manifest: Manifest,
    *,
    status: str,
    cause: str | None,
    ready: protocol.Ready | None,
    progress: float | None,
    copying: protocol.CopyProgress | None = None,
    replicas: int,
    load_times: Mapping[str, float] | None = None,
    more_voices: Iterable[str] = (),
    why_merged: str | None = None,
) -> dict[str, Any]:
    """Describe a model as the design's ModelInfo, with more fields of ours.

    Context and dtype of a loaded model are those that its worker reports (``ready``).
    """
    kind = model_type(manifest)
    voices = voices_of(manifest, more_voices)
    return {
        "model_id": manifest.name,
        "name": manifest.name,
        "type": kind,
        "kind": ADAPTER if manifest.adapter_of else manifest.kind,
        "base": manifest.adapter_of or manifest.base,
        "task": task_of(manifest),
        "description": manifest.description,
        "size": size_text(manifest.total_bytes),
        "status": status,
        "cause": cause or (missing_base(manifest) if manifest.kind == ADAPTER else None),
        "progress": progress,
        "copying": copy_info(copying),
        "replicas": replicas,
        "load_seconds": {source: round(each, 3) for source, each in (load_times or {}).items()},
        "capabilities": list(manifest.capabilities),
        "supported_parameters": supported_parameters(
            _kind(manifest), manifest.engine, manifest.model_type, manifest.image_side
        ),
        **({"voices": voices} if voices else {}),
        "engine": manifest.engine,
        "architecture": manifest.architecture,
        "model_type": manifest.model_type,
        "license": manifest.license,
        "languages": list(manifest.languages),
        "max_context": (ready and ready.max_context) or manifest.max_context,
        "dtype": (ready and ready.dtype) or own_dtype(manifest),
        # How its weights are stored or were quantised at load; null: in full precision.
        "quantization": (ready and ready.quantization) or manifest.quantization,
        "device": ready.device if ready and manifest.engine != "upstream" else None,
        # Why a loaded model's texts are computed one by one; null where they are batched.
        "sequential": ready and ready.sequential,
        # Why a LoRA has a worker of its own; null where its base's computes it, and for others.
        "merged": why_merged or manifest.merged,
        "parameters": manifest.parameters,
        "bytes": manifest.total_bytes,
        "source": manifest.source,
        "revision": manifest.revision,
    }


@cache
def supported_parameters(
    kind: str, engine: str, model_type: str | None, image_side: int
) -> Mapping[str, Any]:
    """List the parameters of a model's requests: type, bounds and default, from their schema."""
    if kind not in KINDS:
        return {}
    own = KINDS[kind]
    never = _NOT_PARAMETERS | own.inputs
    never |= _NOT_OF.get(model_type or "", set()) | _NOT_BY.get(engine, set())
    properties = schema_of(own.request)["properties"]
    defaults = own.defaults
    if image_side and kind == "image":
        defaults = {**defaults, "width": image_side, "height": image_side}
    return {
        name: {
            **schema.get("anyOf", [schema])[0],
            "default": defaults.get(name, schema.get("default")),
        }
        for name, schema in properties.items()
        if name not in never
    }
