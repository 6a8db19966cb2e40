"""Models by the names that requests give."""

from typing import Any

from bitinglip.api.deps import Services
from bitinglip.errors import InvalidModel, InvalidRequest
from bitinglip.wire.admin import model_info, model_type
from model_store.errors import UnknownModel
from model_store.manifest import Manifest


def find_model(services: Services, name: str) -> Manifest:
    """The model of this name. Raises InvalidModel, which lists what there is."""
    try:
        return services.store.get(name)
    except UnknownModel:
        raise InvalidModel(
            param="model",
            details={"model": name[:256], "available_models": list(services.store.names())},
        ) from None


def find_text_model(services: Services, name: str) -> Manifest:
    """A model that answers with text. Raises InvalidModel, or InvalidRequest for another kind."""
    manifest = find_model(services, name)
    if model_type(manifest) != "text":
        raise InvalidRequest(f"This model makes {model_type(manifest)}, not text.", param="model")
    return manifest


def describe(services: Services, manifest: Manifest) -> dict[str, Any]:
    cluster, name = services.cluster, manifest.name
    return model_info(
        manifest,
        status=cluster.status(name),
        cause=cluster.cause(name),
        ready=cluster.ready(name),
        progress=cluster.progress(name),
        replicas=len([each for each in cluster.replicas(name) if each.state == "ready"]),
    )
