"""Selects the files of a repository that a library needs, with one set of weights."""

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from model_store.errors import BadFiles

WEIGHTS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ADAPTER = "This is an adapter, not a model; it needs the model it was made for."
PICKLES_ALLOWED = (
    "With --allow-pickles (allow_pickles in the API and in this model's settings), the tensors are "
    "taken out of them."
)
INDEX = "model_index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NEVER = (".py", *PICKLES, ".msgpack", ".h5", ".ot", ".onnx")
_TEXTS = (".json", ".txt", ".model", ".tiktoken", ".jinja")
_NOT_NEEDED = ("training_args", "optimizer", "trainer_state")
#: folders beside a transformers model: voices, further templates, sentence-transformers' parts
_BESIDE = re.compile(r"(speaker_embeddings/(.+/)?[^/]+\.npy|additional_chat_templates/.+\.jinja)")
_PART = re.compile(r"\d+_[A-Za-z]+/[^/]+")
_SET = re.compile(
    r"(?P<stem>model|diffusion_pytorch_model)(\.(?P<variant>\w+))?"
    r"(?P<shard>-\d+-of-\d+)?(\.(?P<late_variant>\w+))?\.safetensors",
    re.ASCII,
)


def select(
    paths: Collection[str],
    include: Sequence[str] = (),
    components: Iterable[str] | None = None,
    pickles: Iterable[str] = (),
) -> list[str]:
    """Return the paths to download, in order. Raises BadFiles when nothing usable is there.

    ``components`` are a pipeline's folders, where its index has been read; ``pickles`` those
    that are taken where nothing better is there.
    """
    if include:
        chosen = [path for path in sorted(paths) if _matches(path, include)]
        if not chosen:
            raise BadFiles("No file that may be taken matches --include.")
        return chosen
    chosen = required(paths, components)
    if not any(path.endswith(WEIGHTS) for path in chosen):
        if selected := [path for path in pickles if path in paths]:
            return [*chosen, *selected]
        raise BadFiles(_no_weights(paths))
    return chosen


def required(paths: Collection[str], components: Iterable[str] | None = None) -> list[str]:
    """Return the files that a library would open."""
    ordered = sorted(paths)
    if found := adapter_files(ordered):
        return found
    if INDEX in ordered:
        return [INDEX, *_of_components(ordered, components)]
    beside = [path for path in ordered if _BESIDE.fullmatch(path)]
    return [*_of_folder(ordered, ""), *beside, *_of_components(ordered, numbered_parts(ordered))]


def adapter_files(paths: Iterable[str]) -> list[str]:
    """Return the files of an adapter, if that is what they may be; else none.

    One has its own config, or is a single file of weights beside no config of a model; whether
    that file holds an adapter only its header tells.
    """
    root = sorted(path for path in paths if "/" not in path)
    texts = [path for path in root if path.startswith(("LICENSE", "README.md"))]
    if INDEX in root:
        return []
    if ADAPTER_CONFIG in root:
        return [each for each in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if each in root] + texts
    weights = [path for path in root if path.endswith(WEIGHTS)]
    if len(weights) != 1 or "config.json" in root or "modules.json" in root:
        return []
    return weights + texts


def numbered_parts(paths: Iterable[str]) -> list[str]:
    """Return the folders of sentence-transformers' later stages: ``1_Pooling``, ``2_Dense``."""
    return sorted({path.partition("/")[0] for path in paths if _PART.fullmatch(path)})


def one_set(paths: Iterable[str]) -> tuple[str | None, list[str]]:
    """Return one set of weight files of a folder, and their index if there are shards.

    Plain weights come before a variant's (``model.fp16.safetensors``), whole ones before shards.
    """
    listed = sorted(paths)
    sets: dict[tuple[str, bool, str], list[str]] = {}
    for path in listed:
        match = _SET.fullmatch(path.rpartition("/")[2])
        if match:
            variant = match["variant"] or match["late_variant"] or ""
            if variant != "non_ema":
                key = (variant, match["shard"] is not None, match["stem"])
                sets.setdefault(key, []).append(path)
    if not sets:
        return None, []
    variant, sharded, stem = min(sets)
    named = f"{stem}.safetensors.index{'.' if variant else ''}{variant}.json"
    older = f"{stem}{'.' if variant else ''}{variant}.safetensors.index.json"
    indices = [path for path in listed if path.rpartition("/")[2] in (named, older)]
    return (indices[0] if sharded and indices else None), sets[min(sets)]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    allowed = not path.lower().endswith(_NEVER)
    return allowed and any(fnmatchcase(path, pattern) for pattern in patterns)


def _of_components(paths: list[str], components: Iterable[str] | None) -> list[str]:
    if components is None:
        components = {path.partition("/")[0] for path in paths if path.count("/") == 1}
    return [path for part in sorted(components) for path in _of_folder(paths, f"{part}/")]


def _of_folder(paths: list[str], folder: str) -> list[str]:
    """Return the texts and the weights of one folder, without its subfolders."""
    there = [path for path in paths if path.rpartition("/")[0] == folder.rstrip("/")]
    index, weights = one_set(there)
    return [*filter(_is_text, there), *([index] if index else []), *weights]


def _is_text(path: str) -> bool:
    name = path.rpartition("/")[2]
    if ".index." in name or name.startswith(_NOT_NEEDED) or name.lower().endswith(_NEVER):
        return False
    return name.endswith(_TEXTS) or name.startswith(("LICENSE", "README.md"))


def _no_weights(paths: Iterable[str]) -> str:
    names = [path.lower() for path in paths]
    if "adapter_config.json" in names:
        return ADAPTER
    if any(name.endswith(".gguf") for name in names):
        return "This repository holds GGUF files; one with safetensors is needed."
    if any(name.endswith(PICKLES) for name in names):
        return f"This repository holds pickles only, which can run code. {PICKLES_ALLOWED}"
    return "This repository holds no safetensors weights."
