"""Splits a model over several cards by its layers, and lets the library compute it there.

Only models whose projections are joined on the way to a card come here, as the library would put
them there one by one. It splits all others itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workers.engines import torch_env

#: The card of each module, by its path. One of no entry lies where the module around it does.
Places = Mapping[str, torch.device]


def place_of(path: str, places: Places) -> torch.device:
    """Return where a module or a tensor lies. Raises KeyError where nothing tells."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places[path]


def split(
    model: Any, room: Sequence[int], dtype: torch.dtype, device_type: str, *, even: bool
) -> dict[str, torch.device]:
    """Return where the parts of a model of a fused class are to lie, in the order of its layers.

    room: bytes of weights that each card may hold; ``dtype``: their number format there.
    ``even``: the cards get as much each, as whole layers allow; else each but the last is filled.

    Raises Refused with OUT_OF_MEMORY if they do not suffice.
    """
    parts = _parts(model, dtype)
    share = sum(size for _, size in parts) / len(room)
    places: dict[str, torch.device] = {}
    card, used, before = 0, 0, 0
    for path, size in parts:
        # Half of a part beyond its share: so much, and no more, a card takes on for the next.
        while card + 1 < len(room) and (
            used + size > room[card] or (even and before + size / 2 > share * (card + 1))
        ):
            card, used = card + 1, 0
        if used + size > room[card]:
            if even:  # what the others have left of their room may do
                return split(model, room, dtype, device_type, even=False)
            raise torch_env.out_of_memory()
        places[path] = torch.device(device_type, card)
        used, before = used + size, before + size
    places["model.rotary_emb"] = places["model.embed_tokens"]  # which positions reach first
    if "lm_head" not in places:
        places["lm_head"] = places["model.embed_tokens"]
    return places


def free_room() -> list[int]:
    """Return the bytes that are free on each card that this process sees."""
    return [torch.cuda.mem_get_info(card)[0] for card in range(torch.cuda.device_count())]


def dispatch(model: Any, places: Places) -> None:
    """Let the library's forward pass bring what each layer reads to the layer's card.

    The weights are there already.
    """
    if len(set(places.values())) > 1:
        from accelerate import dispatch_model  # takes half a second to import, for few models

        dispatch_model(model, dict(places), skip_keys=model._skip_keys_device_placement)


def leave_indices(model: Any) -> None:
    """Let the library leave on the CPU which tokens' logits are wanted from a split model.

    It would send them to the first card, and there they index nothing of another card; from the
    CPU they index all.
    """
    hook = getattr(model, "_hf_hook", None)
    if hook is not None:
        own = hook.skip_keys or ()
        hook.skip_keys = [*([own] if isinstance(own, str) else own), "logits_to_keep"]


def _parts(model: Any, dtype: torch.dtype) -> list[tuple[str, int]]:
    """Return what is not split further, with its bytes, in the order of the forward pass.

    A head that shares the embedding's weight lies with it, and is no part.
    """
    inner = model.model
    found = [("model.embed_tokens", _bytes(inner.embed_tokens, dtype))]
    found += [
        (f"model.layers.{index}", _bytes(layer, dtype)) for index, layer in enumerate(inner.layers)
    ]
    found.append(("model.norm", _bytes(inner.norm, dtype)))
    if model.lm_head.weight is not inner.embed_tokens.weight:
        found.append(("lm_head", _bytes(model.lm_head, dtype)))
    return found


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(each.numel() for each in module.parameters()) * dtype.itemsize
