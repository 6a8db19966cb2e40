"""Finds the models that callers name, and refuses what these, or the callers, are not for."""

from collections.abc import Callable

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.errors import (
    BitingLipError,
    InsufficientScope,
    InvalidModel,
    InvalidRequest,
    ModelNotAllowed,
)
from bitinglip.wire.kinds import KINDS
from model_store.adapters import missing_base
from model_store.errors import UnknownModel
from model_store.manifest import ADAPTER, RERANK, Manifest
from model_store.store import ModelStore


def model_named(store: ModelStore, caller: Caller, name: str) -> Manifest:
    """Return the model of this name.

    Raises ModelNotAllowed, whether there is such a model or not, or InvalidModel, which lists the
    models that the caller may use.
    """
    if caller.models is not None:
        check_model(caller, name)
    try:
        manifest = store.get(name)
    except UnknownModel:
        names = [each for each in store.names() if caller.may_use(each)]
        raise InvalidModel(
            param="model", details={"model": name[:256], "available_models": names}
        ) from None
    if caller.models is not None:
        check_model(caller, manifest.name)
    return manifest


def model_of_kind(store: ModelStore, caller: Caller, name: str, kind: str) -> Manifest:
    """Return a model of a kind. Raises as model_named does, or InvalidRequest for another kind."""
    manifest = model_named(store, caller, name)
    if manifest.kind == ADAPTER:
        check_has_base(manifest)
    own = "text" if manifest.engine == "fake" else manifest.kind
    if own != kind:
        raise InvalidRequest(
            f"This is a model for {_purpose(own)}, not for {_purpose(kind)}.",
            param="model",
        )
    return manifest


def check_has_base(manifest: Manifest) -> None:
    """Raise InvalidModel for an adapter whose base is not in the store."""
    if manifest.kind == ADAPTER:
        details = {"model": manifest.name, "base": manifest.base}
        raise InvalidModel(missing_base(manifest), param="model", details=details)


def check_model(caller: Caller, name: str) -> None:
    """Raise ModelNotAllowed for a model that the caller's key is not for."""
    if not caller.may_use(name):
        raise ModelNotAllowed(param="model", details={"model": name[:256]})


def check_owner(
    caller: Caller, key_id: str, kind: str, missing: Callable[[], BitingLipError]
) -> None:
    """Check that the caller may see what a job of this kind and key has made.

    Raises ``missing`` for another key's, as if it did not exist; else InsufficientScope.
    """
    if key_id != caller.key_id and not caller.may(Scope.ADMIN):
        raise missing()
    scope = KINDS[kind].scope
    if not caller.may(scope):
        raise InsufficientScope(f"This needs the scope {scope}.", details={"required": scope})


def check_embeds(manifest: Manifest, *, scores: bool = False) -> None:
    """Raise InvalidRequest for a model that makes no vectors, or no scores."""
    if scores and RERANK not in manifest.capabilities:
        raise InvalidRequest(
            "This model makes vectors of texts; reranking needs a cross-encoder.", param="model"
        )
    if not scores and RERANK in manifest.capabilities:
        raise InvalidRequest(
            "This model scores documents: send them with a query to /v1/rerank.", param="model"
        )


def _purpose(kind: str) -> str:
    return KINDS[kind].purpose if kind in KINDS else kind
