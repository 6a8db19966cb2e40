"""Hosting: the requests of a LoRA run on its base's workers, unless something speaks against it."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.hosting import Hosting
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from model_store.adapter_links import LENT
from model_store.adapters import why_merged
from model_store.listing import Listing
from model_store.manifest import ADAPTER, Manifest
from model_store.store import ModelStore
from tests.support.lora_files import write_text_lora
from tests.support.model_folders import llama
from workers.devices import Devices


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("base"))


@pytest.fixture
def store(base: Path, tmp_path: Path) -> ModelStore:
    """Provide a store as a server has it, with a base and a LoRA of it."""
    found = ModelStore(tmp_path / "models")
    found.import_folder(base, "base")
    add(found, base, tmp_path / "lora", "tuned")
    found.listing.keep_in_memory(found.adapter_links.follow)
    return found


def add(store: ModelStore, base: Path, folder: Path, name: str, **config: Any) -> Manifest:
    store.import_folder(write_text_lora(base, folder, named="base", **config), name)
    return store.get(name)


def hosting(store: ModelStore, **models: Any) -> Hosting:
    return Hosting(Settings.model_validate({"models": models}), store)


def test_lora_is_run_by_its_base(store: ModelStore) -> None:
    found = hosting(store)
    assert (found.host("tuned"), found.host("base"), found.host("none")) == ("base", "base", "none")
    assert [each.name for each in found.adapters("base")] == ["tuned"]
    folder = Path(found.lora("tuned").path)
    assert folder.parent == store.adapter_links.of_base("base")
    assert sorted(each.name for each in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_lora_that_has_gone_is_asked_about_without_a_look_at_the_disk(
    store: ModelStore, tmp_path: Path
) -> None:
    store.remove("tuned")
    (tmp_path / "models").rename(tmp_path / "away")  # as a disk that is unplugged
    found = hosting(store)
    assert (found.host("tuned"), found.host("base")) == ("tuned", "base")
    assert found.lora("tuned").path == ""


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ({"base": {"text": {"max_loras": 0}}}, "max_loras is 0"),
        ({"base": {"text": {"max_lora_rank": 1}}}, "its rank is 2"),
        ({"tuned": {"text": {"merge_lora": True}}}, "models.tuned.text.merge_lora is set"),
        ({"tuned": {"max_batch": 2, "pin": False}}, "models.tuned.max_batch is set"),
    ],
)
def test_lora_has_a_worker_of_its_own_by_setting(
    store: ModelStore, models: dict[str, Any], why: str
) -> None:
    found = hosting(store, **models)
    assert found.host("tuned") == "tuned"
    assert why in (found.why_merged(store.get("tuned")) or "")
    assert found.adapters("base") == []
    assert found.lora_numbers(store.get("base")) == 0


def test_lora_with_settings_that_its_base_s_worker_keeps_to_is_run_there(store: ModelStore) -> None:
    own = {"preload": True, "pin": False, "text": {"prefix_cache": "off"}}
    assert hosting(store, tuned=own).host("tuned") == "base"


def test_lora_that_was_used_is_recorded_as_used(store: ModelStore) -> None:
    found = hosting(store)
    assert store.usage("tuned").last_used_at is None
    found.lora("tuned")
    asyncio.run(found.record_uses())
    assert store.usage("tuned").last_used_at is not None


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config"),
        ({"init_lora_weights": "pissa"}, "begun from its base's own weights"),
        ({"alpha_pattern": {"(a+)+": 3}}, "alpha_pattern"),
        ({"alpha_pattern": -1}, "alpha_pattern"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
    ],
)
def test_lora_that_is_more_than_pairs_has_a_worker_of_its_own(
    store: ModelStore, base: Path, tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    other = add(store, base, tmp_path / "other", "other", **config)
    assert why in (other.merged or "")
    assert hosting(store).host("other") == "other"
    assert store.adapter_links.path("other") is None


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("LlamaForCausalLM", None),
        ("T5ForConditionalGeneration", "its base has an encoder"),
        ("Gemma3ForConditionalGeneration", "its base reads pictures"),  # if it had a processor
    ],
)
def test_lora_of_a_base_whose_worker_has_no_room_for_any_is_merged(
    store: ModelStore, architecture: str, why: str | None
) -> None:
    own, base = Listing.all(store.listing)["tuned"], store.get("base")
    own = replace(own, kind=ADAPTER, engine="text", merged=None)
    assert why_merged(own, replace(base, architecture=architecture)) == why


def test_lora_numbers_are_of_as_many_slots_as_a_worker_makes(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    """Each has rank 8, which the LoRA's own is rounded up to."""
    one = hosting(store).lora_numbers(store.get("base"))
    assert one == 4 * (store.get("tuned").parameters - store.get("base").parameters)
    for number in range(2):
        add(store, base, tmp_path / str(number), f"more{number}")
    assert hosting(store).lora_numbers(store.get("base")) == 4 * one, "they double"
    two = hosting(store, base={"text": {"max_loras": 2}})
    assert two.lora_numbers(store.get("base")) == 2 * one


def test_lora_numbers_are_of_the_largest_rank_in_all_that_is_changed(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA of few layers with a high rank makes room of that rank in all layers of another."""
    tuned, found = store.get("tuned"), hosting(store)
    narrow = replace(tuned, name="narrow", lora_rank=32, parameters=tuned.parameters + 10)
    monkeypatch.setattr(found, "adapters", lambda _: [tuned, narrow])
    own = (tuned.parameters - store.get("base").parameters) // tuned.lora_rank
    assert found.lora_numbers(store.get("base")) == 2 * 32 * own


def test_lora_numbers_are_planned_with_the_base_and_learned_sizes_stay(store: ModelStore) -> None:
    settings = Settings.model_validate({"models": {"base": {"device": "cpu"}}})
    footprints = Footprints()
    facts = ResourceFacts(settings, Devices.find([("card", 10**12)]), footprints)
    base = store.get("base")
    before = facts.need(base, "cpu").bytes
    facts.lora_numbers = Hosting(settings, store).lora_numbers
    after = facts.need(base, "cpu").bytes
    assert after - before == 4 * facts.lora_numbers(base) > 0
    learned = 2 * after
    footprints.observe(base, facts.load_config(base, "cpu"), memory_bytes=learned)
    store.remove("tuned")
    assert facts.lora_numbers(base) == 0
    assert facts.need(base, "cpu").bytes >= learned


def test_lora_is_lent_before_it_is_listed_and_no_more_once_it_is_gone(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    seen: list[bool] = []

    def look(manifests: Any) -> None:
        seen.append("late" in Listing.all(store.listing))
        store.adapter_links.follow(manifests)

    store.listing._follow = look
    add(store, base, tmp_path / "late", "late")
    assert not seen[0]
    path = store.adapter_links.path("late")
    assert path is not None
    assert Path(path).is_dir()
    store.remove("late")
    assert store.adapter_links.path("late") is None
    assert not Path(path).exists()


def test_lora_whose_file_was_repaired_is_lent_again(store: ModelStore) -> None:
    weights = store.path("tuned") / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole)
    os.utime(weights, (1, 1))
    store.adapter_links.follow(store.listing.all())
    lent = Path(store.adapter_links.path("tuned") or "") / weights.name
    assert lent.stat().st_mtime == 1
    stamps = hosting(store).lora("tuned").stamps
    assert stamps[weights.name] != (len(whole), lent.stat().st_mtime_ns)
    store.verify("tuned")
    store.listing.refresh()
    stamps = hosting(store).lora("tuned").stamps
    assert stamps[weights.name] == (len(whole), lent.stat().st_mtime_ns)


def test_lora_with_other_contents_is_lent_at_another_place(
    store: ModelStore, base: Path, tmp_path: Path
) -> None:
    before = store.adapter_links.path("tuned")
    store.remove("tuned")
    add(store, base, tmp_path / "again", "tuned", lora_alpha=3)
    assert before != store.adapter_links.path("tuned") is not None


def test_lora_counts_once_in_the_store_although_it_is_lent(
    store: ModelStore, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "lora")  # what it was imported from, by links
    removals = store.gc(max_bytes=1, in_use=lambda name: name == "base")
    [gone] = [each for each in removals if each.kind == "model"]
    assert (gone.name, gone.bytes > 0) == ("tuned", True)


def test_lora_on_a_store_that_cannot_be_written_to_has_a_worker_of_its_own(
    store: ModelStore,
) -> None:
    (store.root / LENT).rename(store.root / "gone")
    (store.root / LENT).write_text("in the way of the folder")
    store.adapter_links.follow(store.listing.all())
    assert hosting(store).host("tuned") == "tuned"
    assert "may only be read" in (hosting(store).why_merged(store.get("tuned")) or "")
