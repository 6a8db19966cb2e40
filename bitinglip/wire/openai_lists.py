"""Shows lists of OpenAI's surface: pages of objects, models and voices.

Models and voices have the fields that clients of other servers look for, too.
"""

from collections.abc import Sequence
from typing import Any

from bitinglip.wire.admin.models import model_type
from bitinglip.wire.kinds import KINDS
from model_store.manifest import Manifest


def openai_model(manifest: Manifest, max_context: int | None) -> dict[str, Any]:
    """Describe a model; fields of ours stand behind OpenAI's.

    The context has the names that it has in vLLM's and in OpenRouter's lists.
    """
    described: dict[str, Any] = {
        "id": manifest.name,
        "object": "model",
        "created": int(manifest.created_at.timestamp()),
        "owned_by": "bitinglip",
        "type": model_type(manifest),
        "capabilities": list(manifest.capabilities),
    }
    if manifest.adapter_of:
        described |= {"root": manifest.adapter_of, "parent": manifest.adapter_of}
    kind = "text" if manifest.engine == "fake" else manifest.kind
    if kind in KINDS:
        read, made = KINDS[kind].modalities
        described["architecture"] = {"input_modalities": [read], "output_modalities": [made]}
    if max_context is not None:
        described |= {"max_model_len": max_context, "context_length": max_context}
    return described


def audio_models(manifests: list[Manifest]) -> dict[str, Any]:
    """List the models that speak, as Open WebUI reads them."""
    return {"models": [{"id": each.name, "name": each.name} for each in manifests]}


def audio_voices(names: list[str]) -> dict[str, Any]:
    """List voices, each once, as Open WebUI reads them."""
    return {"voices": [{"id": name, "name": name} for name in dict.fromkeys(names)]}


def page_of(rows: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Describe one page of a list; ``rows`` has one more than ``limit`` where more follow."""
    page = rows[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(rows) > limit,
    }
