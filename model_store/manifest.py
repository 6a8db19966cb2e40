"""Reads and writes manifests: one JSON file beside a model's files, written last."""

import contextlib
from datetime import datetime
from pathlib import Path

import msgspec

from model_store.disk import sync
from model_store.errors import BadFiles
from model_store.image_size import own_side

MANIFEST = "manifest.json"
FILES = "files"  #: the folder of a model's files, beside its manifest


class FileEntry(msgspec.Struct, frozen=True):
    """Describes one file of a model and its path inside the folder."""

    path: str
    size: int
    sha256: str
    mtime_ns: int = 0  #: when its content last changed; 0 in manifests of old versions


class PackedLayers(msgspec.Struct, frozen=True):
    """Counts linear layers of one shape that AWQ or GPTQ have quantised to 4 bits."""

    outs: int
    ins: int
    groups: int  #: of a layer's inputs: each has a scale and a zero for every output
    scale_bytes: int  #: of one scale
    ordered: bool  #: the inputs of a group need not be next to each other
    count: int


#: Raised when a new version tells more of a model's files, or other things.
FACTS = 4
HUB = "hub:"  #: begins the source of a model that was pulled; then comes the repository
ADAPTER = "adapter"  #: the kind of one whose base is not in the store
VISION = "vision"  #: what a text model is capable of that reads pictures in messages
EMBEDDING, RERANK = "embedding", "rerank"  #: what a model of the kind embedding is capable of


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Describes a model, from its files alone."""

    name: str  #: the id that clients use; may hold one "/"
    kind: str  #: text, image, speech, embedding, transcription; adapter
    engine: str  #: the worker engine that runs it
    architecture: str | None = None
    model_type: str | None = None
    max_context: int | None = None
    dtype: str | None = None  #: of most of the bytes
    parameters: int = 0
    weight_bytes: int = 0
    total_bytes: int = 0
    vocab_size: int | None = None
    longest_token: int | None = None  #: text: characters
    longest_prompt: int = 0  #: embedding: bytes of the longest text that goes before an input
    has_chat_template: bool = False
    #: text: settings of a request that a chat template names; None: it was not looked at
    template_switches: tuple[str, ...] | None = None
    kv_bytes_per_token: int | None = None  #: all layers that keep any, at 2 bytes an element
    cache_positions: int = 0  #: speech and transcription: of one row in the attention caches
    components: dict[str, int] = {}  #: image: bytes of each of the pipeline's models, as stored
    denoiser_width: int = 0  #: image: channels that its activations have at each latent
    decoder_width: int = 0  #: image: channels of the decoder at full size
    image_side: int = 0  #: image: pixels of a side that the model was made for; 0 if it is not told
    voices: tuple[str, ...] = ()  #: speech: the presets that the repository names
    source: str  #: "hub:org/name" (see HUB), "import", "demo"
    revision: str | None = None  #: the commit that was pulled
    files: tuple[FileEntry, ...] = ()
    created_at: datetime
    capabilities: tuple[str, ...] = ()
    description: str = ""
    config_dtype: str | None = None  #: that its config names; None: the weights' own
    license: str | None = None  #: as its authors name it
    quantization: str | None = None  #: the method that its config names for its weights
    #: text: of the layers that can be quantised at load, the rest stays in full precision
    linear_parameters: int = 0
    linear_rows: int = 0
    packed: tuple[PackedLayers, ...] = ()  #: text: those that come in 4 bits, by shape
    languages: tuple[str, ...] = ()  #: codes, as its authors name them
    base: str | None = None  #: adapters: the model that they were made for, as their files name it
    lora_rank: int = 0  #: adapters: the largest of a pair's; 0 if they can only be merged
    merged: str | None = None  #: adapters: why they can only be merged into a copy of their base
    facts: int = 0  #: the version of what is told of the files; see FACTS
    adapter_of: str | None = None  #: adapters, in memory only: the name that their base has here

    @property
    def file_bytes(self) -> int:
        """Return the bytes of the files that its load reads, of an adapter its base's weights
        too."""
        return max(self.total_bytes, self.weight_bytes)


_decoder = msgspec.json.Decoder(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest. Raises BadFiles if it is damaged, OSError if absent."""
    try:
        manifest = _decoder.decode((folder / MANIFEST).read_bytes())
    except msgspec.DecodeError as error:
        raise BadFiles(
            f"A manifest is damaged ({error}); remove the model and add it again."
        ) from error
    if manifest.kind == "image" and not manifest.image_side:  # as older ones are
        with contextlib.suppress(BadFiles, OSError):
            return msgspec.structs.replace(manifest, image_side=own_side(folder / FILES))
    return manifest


def digests_of(folder: Path) -> set[str]:
    """Return the hashes that a folder's manifest lists; none if it has no whole one."""
    try:
        return {entry.sha256 for entry in read_manifest(folder).files}
    except (BadFiles, OSError):
        return set()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: it appears whole or not at all."""
    draft = folder / f"{MANIFEST}.new"
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        sync(draft)
        draft.replace(folder / MANIFEST)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
