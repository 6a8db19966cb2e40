"""Ties adapters (LoRA) to the models that they were made for.

An adapter's own manifest holds what its files tell. As others see it, it is its base under another
name: kind, context and capabilities are the base's.
"""

from collections.abc import Callable, Collection, Mapping

import msgspec

from model_store.errors import BadFiles, BaseOfAdapters
from model_store.kinds import known_names
from model_store.manifest import ADAPTER, HUB, VISION, Manifest

_COMPONENT = "lora"  #: among those of a pipeline
_UNKNOWN = "an older version has looked at its files; the next start or `models verify` looks again"
_OF_PAIRS = 3  #: the version of the facts that tells of an adapter's pairs


def with_bases(manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Return the manifests by name, those of adapters joined with their bases'.

    One whose base is not there keeps the kind "adapter": it is listed, and cannot be used.
    """
    adapters = [each for each in manifests.values() if each.kind == ADAPTER]
    joined = ((each, base_of(each, manifests)) for each in adapters)
    return {**manifests, **{own.name: _join(own, base) for own, base in joined if base}}


def base_of(adapter: Manifest, manifests: Mapping[str, Manifest]) -> Manifest | None:
    """Return the model that an adapter names as its base: by its name here, or on the hub."""
    wanted = (adapter.base or "").casefold()
    fitting = [each for each in manifests.values() if each.kind == each.engine == adapter.engine]
    by_name = (each for each in fitting if each.name.casefold() == wanted)
    by_source = (each for each in fitting if each.source.casefold() == f"{HUB}{wanted}")
    return next(by_name, None) or next(by_source, None)


def adapters_of(name: str, manifests: Mapping[str, Manifest]) -> list[Manifest]:
    """Return the adapters whose base is this model."""
    return [each for each in manifests.values() if each.adapter_of == name]


def check_removable(
    name: str, manifests: Mapping[str, Manifest], may_see: Callable[[str], bool] = lambda _: True
) -> None:
    """Raise BaseOfAdapters for a model that adapters in the store need.

    The error names those that ``may_see`` allows, and tells of others without their names.
    """
    found = [each.name for each in adapters_of(name, manifests)]
    seen = [each for each in found if may_see(each)]
    if len(seen) < len(found):
        more = f" Those that it is for: {', '.join(seen[:8])}." if seen else ""
        raise BaseOfAdapters(
            f"{name} is the base of adapters in the store that this API key is not for.{more} "
            "They have to be removed first, with a key for all models."
        )
    if found:
        raise BaseOfAdapters(
            f"{name} is the base of {'an adapter' if len(found) == 1 else 'adapters'} in the store:"
            f" {', '.join(found[:8])}. Remove {'it' if len(found) == 1 else 'them'} first."
        )


def check_base(
    new: Manifest, manifests: Mapping[str, Manifest], allowed: Collection[str] | None
) -> None:
    """Raise BadFiles for an adapter whose base is none of those allowed; None allows all.

    Who may use an adapter may use its base by it.
    """
    if allowed is None or new.kind != ADAPTER:
        return
    base = base_of(new, manifests)
    if base is None or base.name not in allowed:
        raise BadFiles(
            f"{new.name} is an adapter for {new.base or 'a model that it does not name'}, and the "
            "API key is for no such model."
        )


def missing_base(adapter: Manifest) -> str:
    """Say what an adapter lacks whose base is not in the store."""
    if adapter.base is None:
        return (
            f"{adapter.name} is an adapter, and its files do not name the model that it was made "
            "for: remove it, and import it again with --base and the name of that model."
        )
    return (
        f"{adapter.name} is an adapter for {adapter.base}, which is not in the store as a model of "
        f"the kind {adapter.engine}: pull or import that one, or remove the adapter and import it "
        "again with --base and the name that its base has here."
    )


def weights_file(adapter: Manifest) -> str:
    """Return the path of an adapter's one file of weights, inside its folder."""
    return next(each.path for each in adapter.files if each.path.endswith(".safetensors"))


def why_merged(own: Manifest, base: Manifest) -> str | None:
    """Say why an adapter can only be merged into a copy of its base; None if it need not be."""
    if own.engine != "text":
        return None
    if own.facts < _OF_PAIRS:
        return _UNKNOWN
    # A base of these is computed by its library's own steps, with pictures or without.
    if VISION in base.capabilities or base.architecture in known_names("vision"):
        return "its base reads pictures"
    if base.architecture in known_names("seq2seq"):
        return "its base has an encoder"
    return own.merged


def _join(own: Manifest, base: Manifest) -> Manifest:
    merged = why_merged(own, base)
    components = base.components
    if components:
        components = {**components, _COMPONENT: own.weight_bytes}
    return msgspec.structs.replace(
        base,
        name=own.name,
        base=own.base,
        adapter_of=base.name,
        source=own.source,
        revision=own.revision,
        files=own.files,
        total_bytes=own.total_bytes,
        created_at=own.created_at,
        description=own.description,
        license=own.license,
        languages=own.languages or base.languages,
        parameters=base.parameters + own.parameters,
        weight_bytes=base.weight_bytes + own.weight_bytes,
        components=components,
        lora_rank=0 if merged else own.lora_rank,
        merged=merged,
    )
