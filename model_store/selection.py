"""Selects the files of a repository that a library needs, with one set of weights."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from model_store.errors import BadFiles

WEIGHTS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLES_ALLOWED = (
    "With --allow-pickles (allow_pickles in the API and in this model's settings), the tensors are "
    "taken out of them."
)
INDEX = "model_index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BARE_ADAPTER = (
    f"This is an adapter without {ADAPTER_WEIGHTS}: its weights are missing, or pickles, which can "
    "run code."
)
_NEVER = (".py", *PICKLES, ".msgpack", ".h5", ".ot", ".onnx")
_OTHERS = {
    ".gguf": "GGUF files",
    ".onnx": "ONNX files",
    ".h5": "weights for TensorFlow",
    ".msgpack": "weights for Flax",
    ".tflite": "weights for TensorFlow Lite",
    ".parquet": "data and no model",
}
_TEXTS = (".json", ".txt", ".model", ".spm", ".tiktoken", ".jinja")
_CARDS = ("LICENSE", "README.md")
_NOT_NEEDED = ("training_args", "optimizer", "trainer_state")
#: folders beside a transformers model: voices, further templates, sentence-transformers' parts
_BESIDE = re.compile(r"(speaker_embeddings/(.+/)?[^/]+\.npy|additional_chat_templates/.+\.jinja)")
_PART = re.compile(r"\d+_[A-Za-z]+/[^/]+")
_SET = re.compile(
    r"(?P<stem>model|diffusion_pytorch_model)(\.(?P<variant>\w+))?"
    r"(?P<shard>-\d+-of-\d+)?(\.(?P<late_variant>\w+))?\.safetensors",
    re.ASCII,
)
_INDEX = re.compile(
    r"(?P<stem>model|diffusion_pytorch_model)(\.(?P<variant>\w+))?"
    r"\.safetensors\.index(\.(?P<late_variant>\w+))?\.json",
    re.ASCII,
)


Shards = Mapping[str, Collection[str]]  #: the files that each index names, beside it


def select(
    paths: Collection[str],
    include: Sequence[str] = (),
    components: Iterable[str] | None = None,
    pickles: Iterable[str] = (),
    shards: Shards | None = None,
) -> list[str]:
    """Return the paths to download, in order. Raises BadFiles when nothing usable is there.

    ``components`` are a pipeline's folders, where its index has been read; ``pickles`` those
    that are taken where nothing better is there; ``shards`` what the indices of weights name,
    where they have been read: those and no others are taken then.
    """
    if include:
        chosen = [path for path in sorted(paths) if _matches(path, include)]
        if not chosen:
            raise BadFiles("No file that may be taken matches --include.")
        return chosen
    chosen = required(paths, components, shards)
    if not any(path.endswith(WEIGHTS) for path in chosen):
        if selected := [path for path in pickles if path in paths]:
            return [*chosen, *selected]
        raise BadFiles(_no_weights(paths))
    return chosen


def required(
    paths: Collection[str], components: Iterable[str] | None = None, shards: Shards | None = None
) -> list[str]:
    """Return the files that a library would open. Raises BadFiles for a shard that is missing."""
    ordered = sorted(paths)
    if found := adapter_files(ordered):
        return found
    beside = [] if INDEX in ordered else [path for path in ordered if _BESIDE.fullmatch(path)]
    folders = _folders(ordered, components)
    texts = [INDEX, *_cards(ordered)] if INDEX in ordered else []
    chosen = [path for folder in folders for path in _of_folder(ordered, folder, shards)]
    return [*texts, *chosen, *beside]


def indices(paths: Collection[str], components: Iterable[str] | None = None) -> list[str]:
    """Return the indices of weights that decide which of these files are needed."""
    ordered = sorted(paths)
    found = (one_set(_inside(ordered, folder))[0] for folder in _folders(ordered, components))
    return [index for index in found if index]


def _folders(paths: list[str], components: Iterable[str] | None) -> list[str]:
    """Return the folders whose files are needed; "" is the repository's own."""
    if INDEX not in paths:
        return ["", *numbered_parts(paths)]
    if components is None:
        components = {path.partition("/")[0] for path in paths if path.count("/") == 1}
    return sorted(components)


def adapter_files(paths: Iterable[str]) -> list[str]:
    """Return the files of an adapter, if that is what they may be; else none.

    One has its own config, or is a single file of weights beside no config of a model; whether
    that file holds an adapter only its header tells.
    """
    root = sorted(path for path in paths if "/" not in path)
    if INDEX in root:
        return []
    if ADAPTER_CONFIG in root:
        return [each for each in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if each in root] + _cards(root)
    weights = [path for path in root if path.endswith(WEIGHTS)]
    if len(weights) != 1 or "config.json" in root or "modules.json" in root:
        return []
    return weights + _cards(root)


def _cards(paths: Iterable[str]) -> list[str]:
    """Return what tells of the licence and the languages, which stands beside all folders."""
    cards = (path for path in paths if path.startswith(_CARDS) and "/" not in path)
    return [path for path in cards if not path.lower().endswith(_NEVER)]


def numbered_parts(paths: Iterable[str]) -> list[str]:
    """Return the folders of sentence-transformers' later stages: ``1_Pooling``, ``2_Dense``."""
    return sorted({path.partition("/")[0] for path in paths if _PART.fullmatch(path)})


def one_set(paths: Iterable[str]) -> tuple[str | None, list[str]]:
    """Return one set of weight files of a folder, and their index if there are shards.

    Plain weights come before a variant's (``model.fp16.safetensors``), whole ones before shards.
    """
    listed = sorted(paths)
    sets: dict[tuple[str, bool, str], list[str]] = {}
    named_by: dict[tuple[str, bool, str], str] = {}
    for path in listed:
        name = path.rpartition("/")[2]
        if match := _SET.fullmatch(name):
            key = (_variant(match), match["shard"] is not None, match["stem"])
            sets.setdefault(key, []).append(path)
        elif match := _INDEX.fullmatch(name):
            key = (_variant(match), True, match["stem"])
            named_by.setdefault(key, path)
            sets.setdefault(key, [])
    # Weights for training on.
    sets = {key: found for key, found in sets.items() if key[0] != "non_ema"}
    if not sets:
        return None, []
    return named_by.get(min(sets)), sets[min(sets)]


def _variant(match: "re.Match[str]") -> str:
    return match["variant"] or match["late_variant"] or ""


def _matches(path: str, patterns: Sequence[str]) -> bool:
    allowed = not path.lower().endswith(_NEVER)
    return allowed and any(fnmatchcase(path, pattern) for pattern in patterns)


def _inside(paths: list[str], folder: str) -> list[str]:
    """Return the files of one folder, without its subfolders."""
    return [path for path in paths if path.rpartition("/")[0] == folder]


def _of_folder(paths: list[str], folder: str, shards: Shards | None) -> list[str]:
    """Return the texts and the weights of one folder."""
    there = _inside(paths, folder)
    index, weights = one_set(there)
    if shards is not None:
        weights = _shards(there, index, weights, shards)
        if not weights and INDEX in paths and f"{folder}/config.json" in there:
            raise BadFiles(f"The pipeline's component {folder} has no safetensors weights.")
    return [*filter(_is_text, there), *([index] if index else []), *weights]


def _shards(there: list[str], index: str | None, weights: list[str], shards: Shards) -> list[str]:
    """Return the weights that the index names; without one, whole weights only."""
    if index is None:
        if any("-of-" in path for path in weights):
            raise BadFiles("The weights are in shards, and their index is missing.")
        return weights
    folder = index[: len(index) - len(index.rpartition("/")[2])]
    named = [f"{folder}{name}" for name in sorted(shards[index])]
    missing = [path for path in named if path not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFiles(
            f"{index} names {missing[0]}{more}, which the repository lacks: its upload is "
            "incomplete. Another revision may be whole."
        )
    return named


def _is_text(path: str) -> bool:
    name = path.rpartition("/")[2]
    if ".index." in name or name.startswith(_NOT_NEEDED) or name.lower().endswith(_NEVER):
        return False
    return name.endswith(_TEXTS) or name.startswith(_CARDS)


def other_layout(path: str) -> str:
    """Say what is wrong with weights in one file, beside no config."""
    return (
        f"This repository holds weights in one file for other programs ({path[:80]}); one in the "
        "layout of transformers or diffusers is needed."
    )


def _no_weights(paths: Iterable[str]) -> str:
    names = [path.lower() for path in paths]
    if ADAPTER_CONFIG in names:
        return _BARE_ADAPTER
    singles = [name for name in names if name.endswith(WEIGHTS)]
    if singles:
        return other_layout(singles[0])
    if any(name.endswith(PICKLES) for name in names):
        return f"This repository holds pickles only, which can run code. {PICKLES_ALLOWED}"
    for end, what in _OTHERS.items():
        if any(name.endswith(end) for name in names):
            return (
                f"This repository holds {what}, which are not read here; one with safetensors is "
                "needed, such as the one that it was made from (its page on the hub says which)."
            )
    return "This repository holds no safetensors weights."
