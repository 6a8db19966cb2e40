"""Makes small models on the spot, so that a new server can be tried without any download."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from model_store.errors import BadFiles, NameTaken, UnknownModel
from model_store.kinds import FAKE, UPSTREAM, asked_of_upstream, read_json
from model_store.manifest import FILES, Manifest
from model_store.store import ModelStore


def _make_echo(folder: Path) -> None:
    config = {"model_type": FAKE, "architectures": ["Echo"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _make_upstream(kind: str, folder: Path) -> None:
    config = {"model_type": UPSTREAM, "architectures": ["Upstream"], "kind": kind}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _make_text(folder: Path) -> None:
    from model_store.demo.text import make_text_model

    make_text_model(folder)


def _make_embedding(folder: Path) -> None:
    from model_store.demo.embedding import make_embedding_model

    make_embedding_model(folder)


def _make_image(folder: Path) -> None:
    from model_store.demo.image import make_image_model

    make_image_model(folder)


def _make_speech(folder: Path) -> None:
    from model_store.demo.speech import make_speech_model

    make_speech_model(folder)


#: Raised when a demo model is made in another way: homes that have it as it was then get it, too.
_VERSION = "2"
#: name -> what it is, and who makes its files
DEMOS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "demo-echo": ("Repeats the words of the prompt; no weights.", _make_echo),
    "demo-embedding": (
        "A tiny BERT with random weights: texts are near each other if they share words.",
        _make_embedding,
    ),
    "demo-image": ("A tiny Stable Diffusion with random weights: wild colours.", _make_image),
    "demo-speech": ("A tiny Bark with random weights: babble in six voices.", _make_speech),
    "demo-text": (
        "A tiny Llama that answers short questions about BitingLip, and only those.",
        _make_text,
    ),
}
DEMO_MODELS = tuple(DEMOS)


def make_fake_models(store: ModelStore, names: Sequence[str]) -> list[Manifest]:
    """Put models of the fake engine into the store under these names; they need no weights."""
    description, make = DEMOS["demo-echo"]
    return [made for name in names if (made := _make(store, name, description, make))]


def make_upstream_models(store: ModelStore, kinds: Mapping[str, str]) -> None:
    """Have the store hold the models that other servers answer for, and no others of theirs.

    ``kinds``: what each does, by its name. Raises StoreError.
    """
    for held in store.list():
        if held.engine == "upstream" and _asked(store, held.name) != kinds.get(held.name):
            store.remove(held.name)
    description = "Answered by another server; no files here."
    for name, kind in kinds.items():
        _make(store, name, description, partial(_make_upstream, kind), "upstream")


def _asked(store: ModelStore, name: str) -> str:
    return asked_of_upstream(read_json(store.path(name) / "config.json"))


def make_demo_models(store: ModelStore, names: Sequence[str] = DEMO_MODELS) -> list[Manifest]:
    """Put the demo models into the store; leave existing ones as they are."""
    return [made for name in names if (made := _make(store, name, *DEMOS[name]))]


def refresh_demo_models(store: ModelStore) -> list[Manifest]:
    """Replace demo models that an earlier version made by today's; leave those that were changed,
    and other models of their names. Usage, pins and notes stay."""
    made = []
    for name, (description, make) in DEMOS.items():
        # Gone or damaged in the meantime: then it is no model that an earlier version made.
        with suppress(UnknownModel, BadFiles):
            found = store.get(name)
            if found.source != "demo" or found.engine == "fake" or found.revision == _VERSION:
                continue  # a fake one has the name by the settings
            if store.verify(name):
                continue
            made.append(_put(store.replacing(name), name, description, make, "demo"))
    return made


def _make(
    store: ModelStore,
    name: str,
    description: str,
    make: Callable[[Path], None],
    source: str = "demo",
) -> Manifest | None:
    """Make the model; return None if the name is taken already."""
    if name in store.names():
        return None
    # Taken: another process was quicker.
    with suppress(NameTaken):
        return _put(store, name, description, make, source)
    return None


def _put(
    store: ModelStore, name: str, description: str, make: Callable[[Path], None], source: str
) -> Manifest:
    revision = _VERSION if source == "demo" else None
    with store.draft() as folder:
        make(folder / FILES)
        return store.finish(folder, name, source=source, revision=revision, description=description)
