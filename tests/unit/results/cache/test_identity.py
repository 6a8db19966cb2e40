"""The keys of the cache: what makes two requests one, and what keeps them apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.results.cache.identity import Identity, repeatable
from bitinglip.results.cache.replay import is_whole
from bitinglip.scheduling.job import Job
from bitinglip.settings import Settings
from model_store.store import ModelStore
from tests.support.lora_files import write_text_lora
from tests.support.model_folders import llama
from workers import protocol

ME = Caller("me", "me", "free", frozenset({Scope.TEXT}))
TEXT = protocol.TextJob(
    id="1", prompt="hi", sampling=protocol.Sampling(max_tokens=5, logit_bias={1: 1.0, 2: 2.0})
)
IMAGE = protocol.ImageJob(
    id="1", prompt="a fox", width=64, height=64, steps=4, seeds=(1,), folder="/a", image="/a/1"
)
SPEECH = protocol.SpeechJob(id="1", text="hi", seed=1, folder="/a")
EMBEDDED = protocol.EmbeddingJob(id="1", texts=("hi",))
HEARD = protocol.TranscriptionJob(id="1", path="/a/1", max_seconds=60)
VECTORS = protocol.EmbeddingJob(id="1", texts=("hi",))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models")
    store.import_folder(llama(tmp_path / "llama"), "demo")
    return store


@pytest.fixture
def identity(store: ModelStore) -> Identity:
    return Identity(Settings(), store)


def job(work: protocol.Job, **fields: Any) -> Job:
    return Job(work=work, model="demo", key_id="me", **fields)


def change(work: protocol.Job, **fields: Any) -> protocol.Job:
    return msgspec.structs.replace(work, **fields)


def test_cache_key_leaves_out_what_changes_no_output(identity: Identity) -> None:
    first = identity.key(job(TEXT), ME, {})
    other = change(TEXT, id="2", stream=False)
    assert identity.key(job(other, timeout=3.0), replace(ME, name="renamed"), {}) == first
    bias = msgspec.structs.replace(TEXT.sampling, logit_bias={2: 2.0, 1: 1.0})
    assert identity.key(job(change(TEXT, sampling=bias)), ME, {}) == first
    heard = identity.key(job(HEARD), ME, {"path": "digest"})
    again = change(HEARD, id="2", path="/a/2", stream=False)
    assert identity.key(job(again), ME, {"path": "digest"}) == heard
    image = identity.key(job(IMAGE), ME, {"image": "digest"})
    again = change(IMAGE, id="2", folder="/b", image="/a/2")
    assert identity.key(job(again), ME, {"image": "digest"}) == image


@pytest.mark.parametrize(
    "work", [TEXT, IMAGE, SPEECH, HEARD, EMBEDDED], ids=lambda work: type(work).__name__
)
def test_cache_key_holds_every_other_field(identity: Identity, work: protocol.Job) -> None:
    """Check all fields, later ones too: a field is in the key unless it is named here."""
    left_out = {"id", "folder", "path", "image", "sampling"}
    if isinstance(work, protocol.TextJob | protocol.TranscriptionJob):
        left_out |= {"stream", "prefix_scope"}
    first = identity.key(job(work), ME, {})
    for field in set(work.__struct_fields__) - left_out:
        assert identity.key(job(change(work, **{field: "other"})), ME, {}) != first, field
    if isinstance(work, protocol.TextJob):
        for field in work.sampling.__struct_fields__:
            other = {9: 9.0} if field == "logit_bias" else 99
            sampling = msgspec.structs.replace(work.sampling, **{field: other})
            assert identity.key(job(change(work, sampling=sampling)), ME, {}) != first, field


def test_cache_key_holds_the_bytes_of_uploads(identity: Identity) -> None:
    keys = {identity.key(job(HEARD), ME, {"path": digest}) for digest in ("one", "two")}
    assert len(keys) == 2


def test_cache_key_of_a_key_is_its_own_and_ends_with_its_rights(identity: Identity) -> None:
    callers = [
        ME,
        replace(ME, key_id="other"),
        replace(ME, scopes=frozenset({Scope.TEXT, Scope.IMAGE})),
        replace(ME, models=("demo",)),
        replace(ME, tier="pro"),
    ]
    assert len({identity.key(job(TEXT), caller, {}) for caller in callers}) == len(callers)


def test_cache_key_is_shared_as_the_settings_say(store: ModelStore) -> None:
    others = [replace(ME, key_id="other"), replace(ME, key_id="third", tier="pro")]

    def keys(scope: str) -> int:
        identity = Identity(Settings.model_validate({"cache": {"scope": scope}}), store)
        return len({identity.key(job(TEXT), caller, {}) for caller in (ME, *others)})

    assert [keys(scope) for scope in ("key", "tier", "all")] == [3, 2, 1]


def test_cache_key_changes_with_the_model_and_its_settings(
    store: ModelStore, tmp_path: Path
) -> None:
    def key(**own: Any) -> bytes:
        settings = Settings.model_validate({"models": {"demo": own}})
        return Identity(settings, store).key(job(TEXT), ME, {})

    first = key()
    assert key(dtype="float16") != first
    identity = Identity(Settings(), store)
    assert identity.key(job(TEXT), ME, {}) == first
    store.remove("demo")
    store.import_folder(llama(tmp_path / "new", hidden_act="gelu"), "demo")
    assert identity.key(job(TEXT), ME, {}) != first


def test_cache_key_of_an_adapter_changes_with_its_base(store: ModelStore, tmp_path: Path) -> None:
    lora = write_text_lora(tmp_path / "llama", tmp_path / "lora", named="base")
    store.import_folder(tmp_path / "llama", "base")
    store.remove("demo")
    store.import_folder(lora, "demo")
    identity = Identity(Settings(), store)
    first = identity.key(job(TEXT), ME, {})
    assert identity.key(job(TEXT), ME, {}) == first
    for name in ("demo", "base"):
        store.remove(name)
    store.import_folder(llama(tmp_path / "new", hidden_act="gelu"), "base")
    store.import_folder(lora, "demo")
    assert identity.key(job(TEXT), ME, {}) != first


def test_cache_takes_what_a_repeat_cannot_change() -> None:
    def sampled(**fields: Any) -> Job:
        sampling = msgspec.structs.replace(TEXT.sampling, **fields)
        return job(change(TEXT, sampling=sampling))

    assert repeatable(sampled(temperature=0.0))
    assert repeatable(sampled(temperature=1.0, seed=0))
    assert not repeatable(sampled(temperature=1.0))
    assert repeatable(job(HEARD))
    assert repeatable(job(VECTORS))
    assert repeatable(job(EMBEDDED))
    assert not repeatable(job(change(HEARD, temperature=0.2)))
    for work in (IMAGE, SPEECH):
        assert repeatable(job(work, seeded=True))
        assert not repeatable(job(work))
        assert not repeatable(job(work, seeded=True, output="url"))


def test_cache_keeps_no_answer_that_was_changed_or_sampled_after_all() -> None:
    def painted(**fields: Any) -> protocol.ImageDone:
        image = protocol.ImageFile(width=8, height=8, seed=1, format="png", bytes=1, **fields)
        return protocol.ImageDone(id="1", images=(image,), steps=1, scheduler="ddim")

    def heard(temperature: float) -> protocol.TranscriptionDone:
        segment = protocol.Segment(
            start=0,
            end=1,
            text="hi",
            tokens=(1,),
            avg_logprob=0,
            no_speech_prob=0,
            temperature=temperature,
            compression_ratio=1,
        )
        return protocol.TranscriptionDone(
            id="1", text="hi", language="en", duration=1, segments=(segment,)
        )

    assert is_whole(painted())
    assert not is_whole(painted(filtered=True))
    assert is_whole(heard(0.0))
    assert not is_whole(heard(0.4))
    assert not is_whole(protocol.Cancelled(id="1"))
    assert not is_whole(protocol.Failed(id="1", code="INTERNAL_ERROR", message="no"))
