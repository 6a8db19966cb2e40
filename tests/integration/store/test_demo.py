"""Demo models that an earlier version made: a start replaces them, unless they are no longer so."""

from pathlib import Path

from msgspec import structs

from model_store.demo import make_demo_models, make_fake_models, refresh_demo_models
from model_store.manifest import FILES, write_manifest
from model_store.store import ModelStore
from tests.support.model_folders import llama


def made_before(store: ModelStore, name: str) -> None:
    """Put a model there as an earlier version made it: other files, and no version."""
    with store.draft() as draft:
        llama(draft / FILES)
        store.finish(draft, name, source="demo", description="as it was")


def test_demo_model_of_an_earlier_version_is_replaced_and_keeps_its_records(
    store: ModelStore, tmp_path: Path
) -> None:
    made_before(store, "demo-text")
    store.set_care("demo-text", notes="mine", pinned=True)
    [made] = refresh_demo_models(store)
    [today] = make_demo_models(ModelStore(tmp_path / "other"), ["demo-text"])
    assert store.get("demo-text") == made
    assert [each.sha256 for each in made.files] == [each.sha256 for each in today.files]
    assert store.verify("demo-text") == []
    assert (store.care("demo-text").pinned, store.care("demo-text").notes) == (True, "mine")
    assert refresh_demo_models(store) == []


def test_demo_model_that_was_changed_or_is_another_s_stays(store: ModelStore, source: Path) -> None:
    made_before(store, "demo-text")
    changed = store.path("demo-text") / "config.json"
    text = changed.read_text() + "\n"
    changed.write_text(text)
    store.import_folder(source, "demo-speech")
    make_fake_models(store, ["demo-image"])
    fake = store.read("demo-image")
    write_manifest(store.folder("demo-image"), structs.replace(fake, revision=None))
    store.listing.refresh()
    assert refresh_demo_models(store) == []
    assert changed.read_text() == text
    assert store.get("demo-speech").source == "import"
    assert store.get("demo-image").engine == "fake"
