"""Folders that lie, lure or explode: each is refused by the store in one sentence.

None of them is opened by a library, none is executed, and nothing outside the store changes.
"""

import io
import json
import os
import pickle
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import BadFiles
from model_store.store import ModelStore
from tests.support.model_folders import LLAMA, llama, pipeline, sharded, write

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"
PATIENCE = 20  #: seconds; each takes milliseconds, and none may wait for what never comes

Make = Callable[[Path], object]


class Canary:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def config(**changed: Any) -> Make:
    """Change fields of a good model's config."""
    return lambda folder: write(llama(folder) / "config.json", {**LLAMA, **changed})


def text(name: str, content: Any) -> Make:
    """Put a file beside a good model's, or in the place of one of them."""
    return lambda folder: write(llama(folder) / name, content)


def raw(name: str, content: bytes) -> Make:
    return lambda folder: (llama(folder) / name).write_bytes(content)


def header(entries: Any, data: int = 0, *, length: int | None = None) -> Make:
    """Give a good model weights of this header, before so many bytes of zeros."""
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    size = struct.pack("<Q", len(content) if length is None else length)
    return raw(WEIGHTS, size + content + bytes(data))


def tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def instead(name: str, make: Callable[[Path], object]) -> Make:
    """Put something that is no plain file in the place of one of a good model's files."""

    def made(folder: Path) -> None:
        path = llama(folder) / name
        path.unlink(missing_ok=True)
        make(path)

    return made


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # addresses of sockets are short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def loop(path: Path) -> None:
    path.symlink_to("other")
    (path.parent / "other").symlink_to(path.name)


def twins(folder: Path) -> None:
    write(llama(folder) / "Vocab.json", {})
    write(folder / "vocab.json", {})


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", bytes(10_000_000))
    return file.getvalue()


def array(descr: str, data: bytes = b"") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def with_voice(content: bytes) -> Make:
    def made(folder: Path) -> None:
        config(architectures=["BarkModel"])(folder)
        (folder / "speaker_embeddings").mkdir()
        (folder / "speaker_embeddings/en_speaker_1_fine_prompt.npy").write_bytes(content)

    return made


def index(weight_map: Any) -> Make:
    return lambda folder: write(sharded(folder) / INDEX, {"weight_map": weight_map})


def in_index(name: str) -> Make:
    return lambda folder: sharded(folder, x=name)


def in_place_of_shard(make: Callable[[Path], object]) -> Make:
    def made(folder: Path) -> None:
        (sharded(folder) / SHARD).unlink()
        make(folder / SHARD)

    return made


def component_config(content: Any) -> Make:
    return lambda folder: write(pipeline(folder) / "unet/config.json", content)


DOUBLED = b'{"a": %b, "a": %b}' % (
    json.dumps(tensor()).encode(),
    json.dumps(tensor("I32")).encode(),
)
LONG = "x" * 300
DIGITS = "1" * 5000

CASES: dict[str, tuple[Make, str]] = {
    # headers of weights
    "weights of no bytes": (raw(WEIGHTS, b""), "model.safetensors is not a whole"),
    "weights of seven bytes": (raw(WEIGHTS, bytes(7)), "not a whole"),
    "a header longer than its file": (header({}, length=1000), "longer than the file"),
    "a header of 16 exabytes": (header({}, length=2**64 - 1), "longer than the file"),
    "a header cut short": (header(b'{"a": {"dtype": "F32"'), "header does not read"),
    "a header that is a list": (header([]), "header does not read"),
    "a header that is deep": (header(b"[" * 200_000), "header does not read"),
    "a header in UTF-16": (header(json.dumps({}).encode("utf-16")), "header does not read"),
    "a header that is not UTF-8": (header(b'{"\xff\xfe": {}}'), "header does not read"),
    "a header with a mark before it": (header(b"\xef\xbb\xbf{}"), "header does not read"),
    "a header with NaN": (header(b'{"a": NaN}'), "header does not read"),
    "a tensor that is a number": (header({"a": 7}), "at all|does not read"),
    "a tensor without a place": (header({"a": {"dtype": "U8", "shape": [1]}}), "not at all"),
    "a tensor twice": (header(DOUBLED, 4), "something twice"),
    "a tensor of an unknown type": (header({"a": tensor("F33")}, 4), "unknown type"),
    "a tensor whose type is a list": (header({"a": tensor(["F32"])}, 4), "does not read"),
    "a tensor of negative size": (header({"a": tensor(shape=[-1, -1])}, 4), "does not read"),
    "a tensor that ends before it begins": (header({"a": tensor(offsets=[4, 0])}, 4), "follow"),
    "a tensor of a huge size": (header({"a": tensor(shape=[2**60])}, 4), "does not read"),
    "a tensor of a product that is huge": (header({"a": tensor(shape=[2**50] * 9)}, 4), "shape of"),
    "a tensor of 1000 dimensions": (header({"a": tensor(shape=[1] * 1000)}, 4), "does not read"),
    "a tensor of half an element": (header({"a": tensor(shape=[0.5])}, 4), "does not read"),
    "a shape that is text": (header({"a": tensor(shape="11")}, 4), "does not read"),
    "tensors that overlap": (
        header({"a": tensor(offsets=[0, 4]), "b": tensor(offsets=[2, 6])}, 6),
        "do not follow",
    ),
    "tensors with a hole between": (
        header({"a": tensor(offsets=[0, 4]), "b": tensor(offsets=[8, 12])}, 12),
        "do not follow",
    ),
    "bytes after the last tensor": (header({"a": tensor()}, 5), "do not cover"),
    "a tensor beyond the file": (header({"a": tensor()}, 3), "do not cover"),
    "metadata that is no text": (
        header({"__metadata__": {"format": {"a": 1}}, "a": tensor()}, 4),
        "does not read",
    ),
    "no tensors": (header({}), "no weights"),
    "tensors of nothing": (
        header({"model.layers.0.a": tensor(shape=[0, 8], offsets=[0, 0])}),
        "without a single number|claims",
    ),
    "a zip bomb": (raw(WEIGHTS, zip_bomb()), "not a whole"),
    "a pickle by another name": (raw(WEIGHTS, pickle.dumps(Canary())), "not a whole"),
    "pickles only": (
        lambda folder: (llama(folder) / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "pickles",
    ),
    # indices
    "an index that is empty": (index({}), "no weight_map"),
    "an index that is a list": (lambda folder: write(sharded(folder) / INDEX, []), "JSON object"),
    "an index without a map": (lambda folder: write(sharded(folder) / INDEX, {}), "no weight_map"),
    "an index with numbers": (index({"a": 7}), "no weight_map"),
    "an index that names its parent": (in_index("../secret.safetensors"), "cannot be taken"),
    "an index that goes in and out": (in_index("a/../../secret.safetensors"), "cannot be taken"),
    "an absolute name": (in_index("/etc/secret.safetensors"), "cannot be taken"),
    "a name with a drive": (in_index("C:secret.safetensors"), "cannot be taken"),
    "a name with backslashes": (in_index("..\\secret.safetensors"), "cannot be taken"),
    "a name with a zero in it": (in_index("a\0.safetensors"), "cannot be taken"),
    "a name of 300 bytes": (in_index(f"{LONG}.safetensors"), "cannot be taken"),
    "a name that is empty": (in_index(""), "cannot be taken"),
    "a name that is a dot": (in_index("."), "cannot be taken|points out"),
    "a shard in a folder": (in_index("original/a.safetensors"), "points out"),
    "a shard that is a pickle": (in_index("pytorch_model.bin"), "pickle"),
    "a shard that is missing": (
        lambda folder: (sharded(folder) / SHARD).unlink(),
        "shard .* missing",
    ),
    "a shard that is a folder": (in_place_of_shard(Path.mkdir), "shard .* missing"),
    "a shard that is a pipe": (in_place_of_shard(os.mkfifo), "not a file|missing"),
    "shards without their index": (
        lambda folder: (sharded(folder) / INDEX).unlink(),
        "index is missing",
    ),
    "a tensor that no shard holds": (in_index(SHARD), "do not hold, x"),
    # configs
    "a config of no bytes": (text("config.json", ""), "config.json is not valid JSON"),
    "a config that is a list": (text("config.json", []), "config.json does not hold"),
    "a config that is null": (text("config.json", None), "config.json does not hold"),
    "a config that is text": (text("config.json", '"llama"'), "config.json does not hold"),
    "a config cut short": (text("config.json", '{"a": '), "not valid JSON"),
    "a config in single quotes": (text("config.json", "{'a': 1}"), "not valid JSON"),
    "a config that is deep": (text("config.json", '{"a":' * 100_000), "not valid JSON"),
    "a config that is not UTF-8": (raw("config.json", b'{"a": "\xff"}'), "not valid JSON"),
    "a config in UTF-16": (raw("config.json", json.dumps(LLAMA).encode("utf-16")), "not valid"),
    "a config with a mark before it": (
        raw("config.json", b"\xef\xbb\xbf" + json.dumps(LLAMA).encode()),
        "not valid JSON",
    ),
    "a config of 21 MB": (text("config.json", json.dumps({"a": " " * 21_000_000})), "too large"),
    "a number of 5000 digits": (text("config.json", f'{{"a": {DIGITS}}}'), "not valid JSON"),
    "NaN among the sizes": (config(hidden_size=float("nan")), "NaN"),
    "NaN deep inside": (config(a=[{"b": float("nan")}]), "NaN"),
    "infinite layers": (config(num_hidden_layers=float("inf")), "num_hidden_layers is not a whole"),
    "layers that are true": (config(num_hidden_layers=True), "num_hidden_layers is not a whole"),
    "layers that are text": (config(num_hidden_layers="2"), "num_hidden_layers is not a whole"),
    "a width that is a fraction": (config(hidden_size=8.5), "hidden_size is not a whole"),
    "a width below zero": (config(hidden_size=-8), "hidden_size is beyond"),
    "a vocabulary that is a list": (config(vocab_size=[64]), "vocab_size is not a whole"),
    "heads that are an object": (config(num_attention_heads={}), "heads is not a whole"),
    "a context of 10 to the 30": (config(max_position_embeddings=10**30), "beyond what any model"),
    "a text model inside that lies": (config(text_config={"n_ctx": "9"}), "n_ctx is not a whole"),
    "100,000 layers": (config(num_hidden_layers=100_000), "claims 100000 layers"),
    "a huge vocabulary": (config(vocab_size=2**30), "vocab_size"),
    "a rotary scaling that is text": (config(rope_scaling="linear"), "rope_scaling is not an"),
    "rotary parameters in a list": (config(rope_parameters=[1]), "rope_parameters is not an"),
    "a rotary scaling of no known type": (config(rope_scaling={"type": "magic"}), "'magic'"),
    "a rotary scaling whose type is a list": (config(rope_scaling={"type": []}), "of the type"),
    "a linear scaling without factor": (config(rope_scaling={"type": "linear"}), "factor"),
    "a scaling by NaN": (config(rope_scaling={"type": "linear", "factor": float("nan")}), "NaN"),
    "a scaling by infinity": (
        config(rope_scaling={"rope_type": "dynamic", "factor": float("inf")}),
        "no good factor",
    ),
    "a scaling that is incomplete": (
        config(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
        "low_freq_factor",
    ),
    "a rotary base that is text": (config(rope_scaling={"rope_theta": "1e4"}), "rope_theta"),
    "no architecture": (config(architectures=None), "architecture 'None'"),
    "an unknown architecture": (config(architectures=["os.system"]), "'os.system'"),
    "an architecture that is a list": (config(architectures=[["LlamaForCausalLM"]]), "'None'"),
    # code
    "code of the model": (config(auto_map={"AutoModel": "evil.Model"}), "code of its own"),
    "code of an encoder inside": (config(a=[{"auto_map": {"AutoModel": "e.M"}}]), "code of its"),
    "code of the tokenizer": (
        text("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["e.T", None]}}),
        "code of its own",
    ),
    "code of the processor": (
        text("processor_config.json", {"auto_map": {"AutoProcessor": "e.P"}}),
        "code of its own",
    ),
    "code of the picture processor": (
        text("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "e.P"}}),
        "code of its own",
    ),
    "code of the generation": (
        text("generation_config.json", {"auto_map": {"x": "e.P"}}),
        "code of its own",
    ),
    # other texts
    "a tokenizer that is no JSON": (text("tokenizer.json", "{"), "tokenizer.json is not valid"),
    "a tokenizer config in a list": (text("tokenizer_config.json", [1]), "does not hold a JSON"),
    "generation settings in a list": (text("generation_config.json", [1]), "does not hold a JSON"),
    "generation settings cut short": (text("generation_config.json", "{"), "is not valid JSON"),
    "special tokens that are no JSON": (text("special_tokens_map.json", "{"), "is not valid JSON"),
    # files that are none
    "weights that are a pipe": (instead(WEIGHTS, os.mkfifo), "not a file"),
    "weights that are a socket": (instead(WEIGHTS, a_socket), "not a file"),
    "weights that are a device": (instead(WEIGHTS, link("/dev/zero")), "leaves the folder"),
    "weights that are a folder": (instead(WEIGHTS, Path.mkdir), "no weights|not a plain|missing"),
    "weights that link out": (instead(WEIGHTS, link("../secret.safetensors")), "leaves the folder"),
    "weights that link to nothing": (instead(WEIGHTS, link("nothing")), "link to nothing"),
    "weights that link in a circle": (instead(WEIGHTS, loop), "link to nothing, or to itself"),
    "a config that is a pipe": (instead("config.json", os.mkfifo), "not a file"),
    "a config that is a folder": (instead("config.json", Path.mkdir), "missing"),
    "a config that is endless": (instead("config.json", link("/dev/zero")), "leaves the folder"),
    "a config that links out": (instead("config.json", link("/etc/hostname")), "leaves the folder"),
    "a README that links out": (instead("README.md", link("/etc/passwd")), "leaves the folder"),
    "a template that is a pipe": (instead("chat_template.jinja", os.mkfifo), "not a file"),
    "a folder that links to its parent": (instead("sub", link("..")), "a link to a folder"),
    "a folder that links to the system": (instead("sub", link("/proc")), "a link to a folder"),
    "names that differ only in case": (twins, "differ only in case"),
    "a name of control characters": (text("a\x1b[2J.json", {}), "name cannot be taken"),
    "a name with a line's end": (text("a\n.json", {}), "name cannot be taken"),
    "a name that is not UTF-8": (
        lambda folder: Path(os.fsdecode(os.fsencode(llama(folder)) + b"/a\xff.json")).touch(),
        "name cannot be taken",
    ),
    "an empty folder": (lambda _folder: None, "no config.json"),
    # voices
    "a voice of pickled objects": (with_voice(array("'|O'", pickle.dumps(Canary()))), "objects"),
    "a voice of nested fields": (with_voice(array("[('a', '|O')]")), "objects"),
    "a voice that is no array": (with_voice(b"PK\x03\x04" + bytes(50)), "not an array"),
    "a voice whose header is code": (with_voice(array("__import__('os').mkdir('x')")), "not an"),
    "a voice whose header is deep": (with_voice(array("(" * 3000)), "not an array"),
    # pipelines
    "a pipeline's index in a list": (lambda f: write(f / "model_index.json", []), "JSON object"),
    "a component of the system": (lambda f: pipeline(f, unet=["os", "system"]), "code of its own"),
    "a component of a file": (lambda f: pipeline(f, unet=["./evil", "Net"]), "code of its own"),
    "a class of a list": (
        lambda f: pipeline(f, unet=["diffusers", ["e"]]),
        "does not name a class",
    ),
    "a class with a path": (lambda f: pipeline(f, unet=["diffusers", "a.b"]), "does not name a"),
    "a component above": (lambda f: pipeline(f, **{"..": ["diffusers", "X"]}), "cannot be taken"),
    "a component missing": (lambda f: pipeline(f, vae=["diffusers", "V"]), "vae is missing"),
    "a pipeline of its own": (lambda f: pipeline(f, _class_name=["e", "Evil"]), "code of its own"),
    "a pipeline of another kind": (lambda f: pipeline(f, _class_name="System"), "'System'"),
    "a component that swells": (component_config({"num_layers": 10**6}), "claims 1000000 layers"),
    "a component of NaN": (
        component_config({"hidden_size": float("nan")}),
        "unet/config.json.*NaN",
    ),
    "a component without a config's object": (component_config([]), "JSON object"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return ModelStore(tmp_path_factory.mktemp("store") / "models")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide a folder beside the repository with a file in it, which is unchanged at the end."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    yield tmp_path
    assert secret.read_bytes() == b"secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", secret.name]


@pytest.mark.parametrize("case", CASES)
def test_malformed_repositories_are_refused(store: ModelStore, outside: Path, case: str) -> None:
    make, why = CASES[case]
    folder = outside / "files"
    folder.mkdir()
    make(folder)
    began = time.monotonic()
    with pytest.raises(BadFiles, match=why) as caught:
        store.import_folder(folder, "malformed")
    assert time.monotonic() - began < PATIENCE
    message = caught.value.message
    assert message.endswith(".")
    assert message.isprintable()
    assert len(message) < 500
    assert str(outside) not in message
    assert "Traceback" not in message
    assert store.names() == []
    assert list(store.partial.iterdir()) == []


def test_malformed_templates_do_no_harm_until_they_are_used(
    store: ModelStore, outside: Path
) -> None:
    """They are for the worker's sandbox: the store takes them in as text, and runs none."""
    folder = llama(outside / "files")
    write(folder / "chat_template.jinja", "{% for a in range(9**9**9) %}{{ ''.__class__ }}")
    write(folder / "additional_chat_templates/tool_use.jinja", "{{ 'A' * 10**10 }}")
    found = store.import_folder(folder, "bomb")
    assert found.has_chat_template
    store.remove("bomb")
