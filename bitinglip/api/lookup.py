"""Models by the names that requests give."""

import re
from typing import Any

from bitinglip.api.deps import Services
from bitinglip.errors import InvalidModel, InvalidRequest
from bitinglip.wire.admin import model_info, model_type
from model_store.errors import StoreError
from model_store.manifest import Manifest

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)


def find_model(services: Services, name: str) -> Manifest:
    """The model of this name. Raises InvalidModel, which lists what there is."""
    if _NAME.fullmatch(name) and ".." not in name:
        try:
            return services.store.get(name)
        except StoreError as error:
            if error.code != "INVALID_MODEL":
                raise
    raise InvalidModel(
        param="model",
        details={"model": name[:256], "available_models": list(services.store.names())},
    )


def find_text_model(services: Services, name: str) -> Manifest:
    """A model that answers with text. Raises InvalidModel, or InvalidRequest for another kind."""
    manifest = find_model(services, name)
    if model_type(manifest) != "text":
        raise InvalidRequest(f"This model makes {model_type(manifest)}, not text.", param="model")
    return manifest


def describe(services: Services, manifest: Manifest) -> dict[str, Any]:
    residency = services.residency
    return model_info(
        manifest,
        status=residency.status(manifest.name),
        cause=residency.cause(manifest.name),
        max_context=residency.max_context(manifest.name),
    )
