"""Tells the kind of a repository from file names and JSON; nothing is imported or run.

``architectures.json`` holds the names that transformers and diffusers know;
``python -m model_store.kinds`` writes it from the installed versions.
"""

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from model_store.errors import BadFiles

SENTENCE_FILE = "config_sentence_transformers.json"  #: of sentence-transformers
_TABLE = "architectures.json"
_TABLES = {
    "text": ["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"],
    "speech": [
        "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES",
        "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING_NAMES",
    ],
    "transcription": ["MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "MODEL_FOR_CTC_MAPPING_NAMES"],
    "embedding": ["MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"],  # cross-encoders
}
#: texts by other ways: pictures beside them, or an encoder of the prompt
_TEXTS_TOO = ("vision", "seq2seq")
_OF_SOUND = re.compile("audio|asr|speech|voxtral|flamingo|transcribe|seamless")
#: what no table has: part of a speech model, in a repository of its own
_VOCODERS = frozenset({"SpeechT5HifiGan"})
FAKE = "bitinglip-fake"  #: the model_type of a model that only pretends
UPSTREAM = "bitinglip-upstream"  #: likewise, of one that other servers answer for
#: engines of the models without weights, by their model_type
WITHOUT_WEIGHTS = {FAKE: "fake", UPSTREAM: "upstream"}
#: what models of other servers do, as the settings say: the kind here
UPSTREAM_KINDS = {
    "text": "text",
    "vision": "text",
    "embedding": "embedding",
    "rerank": "embedding",
    "transcription": "transcription",
    "speech": "speech",
    "image": "image",
}
_MOST_JSON_BYTES = 20_000_000
#: of vocabularies, of which 30 MB are common, and of indices
_MOST_BYTES_OF_LISTS = 200_000_000
_LISTS = re.compile(r"tokenizer\.json|.*vocab.*\.json|.*\.index(\..+)?\.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model's folder. Raises BadFiles for anything else."""
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise BadFiles(f"{path.name} does not hold a JSON object.")
    return value


def read_any_json(path: Path) -> Any:
    """Read a JSON file. Raises BadFiles if it is not JSON in UTF-8, without a mark before it."""
    if not path.is_file():
        raise BadFiles(f"{path.name} is missing, or not a file.")
    most = _MOST_BYTES_OF_LISTS if _LISTS.fullmatch(path.name) else _MOST_JSON_BYTES
    if path.stat().st_size > most:
        raise BadFiles(f"{path.name} is too large for what it is.")
    try:
        return json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise BadFiles(f"{path.name} is not valid JSON.") from error


def is_pipeline(folder: Path) -> bool:
    """Tell whether a folder holds a pipeline of diffusers."""
    return (folder / "model_index.json").exists()


def kind_of(folder: Path) -> str:
    """Return text, image, speech, vocoder, transcription or embedding; raises BadFiles if none."""
    if is_pipeline(folder):
        return "image"
    if (folder / "modules.json").exists() or (
        folder / "config_sentence_transformers.json"
    ).exists():
        return "embedding"
    if not (folder / "config.json").exists():
        gguf = any(folder.glob("*.gguf"))
        what = "It holds GGUF files only" if gguf else "There is no config.json"
        raise BadFiles(f"{what}; a model in Hugging Face layout with safetensors is needed.")
    return _kind_of_config(read_json(folder / "config.json"))


def _kind_of_config(config: dict[str, Any]) -> str:
    if model_type_of(config) in WITHOUT_WEIGHTS:
        return UPSTREAM_KINDS[asked_of_upstream(config)]
    name = architecture_of(config)
    if name in _VOCODERS:
        return "vocoder"
    for kind in _TABLES:
        if name in known_names(kind):
            return kind
    if any(name in known_names(table) for table in _TEXTS_TOO):
        return "text"
    raise BadFiles(
        f"The architecture '{str(name)[:80]}' is none that BitingLip runs (text, speech, "
        "transcription or reranking models of the transformers library, and diffusers pipelines)."
    )


def asked_of_upstream(config: dict[str, Any]) -> str:
    """Return what a model without weights does; text, where its config does not say.

    Raises BadFiles for what no such model does.
    """
    asked = config.get("kind", "text")
    if not isinstance(asked, str) or asked not in UPSTREAM_KINDS:
        raise BadFiles("A model of other servers does one of: " + ", ".join(UPSTREAM_KINDS) + ".")
    return asked


def model_type_of(config: dict[str, Any]) -> str | None:
    """Return the ``model_type`` of a config; None if it is not there, or no text."""
    told = config.get("model_type")
    return told if isinstance(told, str) else None


def architecture_of(config: dict[str, Any]) -> str | None:
    """Return the first of a config's architectures, if there is one."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    return first if isinstance(first, str) else None


def is_cross_encoder(folder: Path, config: dict[str, Any]) -> bool:
    """Tell whether a model of the kind embedding scores pairs of texts. Raises BadFiles.

    sentence-transformers says it in its own file; a classifier without its files is one if it has
    one label, and refused if it has more.
    """
    own = folder / SENTENCE_FILE
    if (folder / "modules.json").exists() or own.exists():
        return own.exists() and read_json(own).get("model_type") == "CrossEncoder"
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        raise BadFiles("A classifier with more than one label is not run; a reranker has one.")
    return True


def known_names(kind: str) -> frozenset[str]:
    """List the architectures of a kind, or of texts by other ways; for "image" pipelines; for
    "pipeline modules" of diffusers; for "rope types" of rotary scalings."""
    return _tables()[kind]


@cache
def _tables() -> dict[str, frozenset[str]]:
    text = resources.files(__package__).joinpath(_TABLE).read_text()
    return {kind: frozenset(names) for kind, names in json.loads(text).items()}


def _write_table() -> None:
    """Copy the tables of the installed transformers; not at run time, which must not import it."""
    import importlib

    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found: dict[str, set[str]] = {kind: set() for kind in _TABLES}
    for kind, tables in _TABLES.items():
        for table in tables:
            for names in getattr(auto, table).values():
                found[kind].update([names] if isinstance(names, str) else names)
    # A name in several tables is what its first table says: Bark speaks, though it also is causal.
    found["text"] -= found["speech"] | found["transcription"]
    encoded = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    found["seq2seq"] = {name for kind, name in encoded.items() if not _OF_SOUND.search(kind)}
    found["vision"] = _vision(auto)
    pipelines = importlib.import_module("diffusers.pipelines")
    images = importlib.import_module("diffusers.pipelines.auto_pipeline")
    found["image"] = {cls.__name__ for cls in images.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    folders = Path(str(pipelines.__file__)).parent.iterdir()
    found["pipeline modules"] = {path.name for path in folders if (path / "__init__.py").exists()}
    rotary = importlib.import_module("transformers.modeling_rope_utils")
    found["rope types"] = {"default", *rotary.ROPE_INIT_FUNCTIONS}
    plain = {kind: sorted(names) for kind, names in found.items()}
    Path(__file__).with_name(_TABLE).write_text(json.dumps(plain, indent=1) + "\n")


def _vision(auto: Any) -> set[str]:
    """Return the models that read pictures with no other library than Pillow."""
    import importlib

    processors = importlib.import_module("transformers.models.auto.processing_auto")
    images = importlib.import_module("transformers.models.auto.image_processing_auto")
    classes = images.IMAGE_PROCESSOR_MAPPING_NAMES
    able = {kind for kind in processors.PROCESSOR_MAPPING_NAMES if "pil" in classes.get(kind, ())}
    names = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return {name for kind, name in names.items() if kind in able}


if __name__ == "__main__":
    _write_table()
