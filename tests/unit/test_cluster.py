"""The settings of a cluster: what is refused at the start, and what its agents are given."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bitinglip import cluster
from bitinglip.cluster import agent_config, check_cluster, model_source
from bitinglip.home import Home
from bitinglip.settings import Settings
from bitinglip.settings_loader import SettingsError
from cli.checks import cluster as checks
from cli.checks.cluster import cluster as findings
from model_store.demo import make_fake_models
from model_store.store import ModelStore
from workers.nodes.messages import HeldTree, StoreFacts
from workers.nodes.models.trees import key_of


def on_ray(**ray: object) -> Settings:
    return Settings.model_validate({"workers": {"launcher": "ray", "ray": ray}})


def test_ray_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"pip install 'bitinglip\[ray\]'"):
        check_cluster(on_ray())
    (finding,) = findings(on_ray())
    assert finding.level == "error"
    check_cluster(Settings())
    assert list(findings(Settings())) == []


def test_ray_head_that_does_not_answer_is_found_by_doctor() -> None:
    (finding,) = findings(on_ray(address="127.0.0.1:1"))
    assert finding.level == "error"
    assert "nothing answers at 127.0.0.1:1" in finding.detail


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "ray://10.0.0.1:10001", "http://10.0.0.1:8265", "a b:1", "::1:6379", "x:0"],
)
def test_ray_address_that_is_no_head_s_is_refused_with_the_form_of_one(address: str) -> None:
    with pytest.raises(ValidationError, match="as 'ray start --head' prints it"):
        on_ray(address=address)
    for good in ("auto", "10.0.0.1:6379", "[::1]:6379", "box.example:1"):
        assert on_ray(address=good).workers.ray.address == good


@pytest.mark.parametrize(
    ("script", "level", "told"),
    [
        ("", "ok", "a cluster answers on this machine"),
        ("import sys; sys.exit('trace\\nno running instance')", "error", "no running instance"),
        ("import time; time.sleep(60)", "error", "no answer within 1 s"),
    ],
)
def test_doctor_asks_ray_itself_whether_there_is_a_cluster(
    script: str, level: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "ray/scripts").mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "scripts.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(checks, "_RAY_SECONDS", 1.0 if "sleep" in script else 15.0)
    (finding,) = findings(on_ray())
    assert finding.level == level
    assert told in finding.detail


def test_secret_file_must_be_its_owner_s_alone_and_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(SettingsError, match=r"cannot be read .*; make it once and copy it"):
        check_cluster(on_ray(secret_file=str(file)))
    (finding,) = findings(on_ray(secret_file=str(file)))
    assert (finding.level, finding.advice[:12]) == ("error", "make it once")
    file.write_text("long enough for a secret")
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        check_cluster(on_ray(secret_file=str(file)))
    file.chmod(0o600)
    check_cluster(on_ray(secret_file=str(file)))
    file.write_text("short")
    with pytest.raises(SettingsError, match="fewer than"):
        check_cluster(on_ray(secret_file=str(file)))


def test_agents_are_given_what_the_settings_say(tmp_path: Path) -> None:
    settings = on_ray(ports="7000-7009", folder="/var/lib/nodes", secret_file="/etc/secret")
    config = agent_config(settings, Home(tmp_path), "the secret")
    assert config.secret == "", "it is read from its file on each node"
    assert (config.ports, config.folder) == ((7000, 7009), "/var/lib/nodes")
    assert config.models == (str(tmp_path / "models"),)
    assert "/etc/secret" in config.hidden


def test_agents_keep_copies_where_and_as_many_as_the_settings_say(tmp_path: Path) -> None:
    config = agent_config(on_ray(models="pull", folder="/var/lib/nodes"), Home(tmp_path), "s" * 16)
    assert (config.store, config.store_max_bytes) == ("/var/lib/nodes/models", None)
    own = on_ray(models="pull", models_path="/srv/copies", models_max_bytes=5)
    config = agent_config(own, Home(tmp_path), "s" * 16)
    assert (config.store, config.store_max_bytes) == ("/srv/copies", 5)
    assert agent_config(on_ray(), Home(tmp_path), "s" * 16).store is None


def test_source_of_copies_reads_what_manifests_list(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    make_fake_models(ModelStore(home.models), ["demo-echo"])
    source = model_source(home)
    tree, _ = source.tree(str(home.models / "demo-echo/files"))
    manifest = ModelStore(home.models).get("demo-echo")
    assert {each.sha256 for each in tree.files} == {each.sha256 for each in manifest.files}
    key = key_of(tree.files)
    held = (HeldTree(tree.source, key), HeldTree(tree.source, "1" * 32))
    (found,) = source.compare([StoreFacts(bytes=0, held=held, whole=(key,))])
    nonsense = StoreFacts(bytes=0, held=(HeldTree("/x\0/files", key),))
    assert source.compare([nonsense])[0] == (frozenset(), (key,))
    long = StoreFacts(bytes=0, held=(HeldTree(f"/{'x' * 300}", key),), whole=(key,))
    assert source.compare([long])[0] == (frozenset({"demo-echo"}), ()), "of it nothing is known"
    assert found == (frozenset({"demo-echo"}), ("1" * 32,))


@pytest.mark.parametrize(
    "ray",
    [
        {"ports": "9-7"},
        {"ports": "70000"},
        {"ports": "0-9"},
        {"ports": "x"},
        {"models_path": "relative"},
        {"models_max_bytes": 0, "models": "pull"},
        {"models_max_bytes": 5},
        {"models_path": "/var/copies", "models": "shared"},
        {"models": "other"},
        {"folder": "relative"},
        {"secret_file": "relative"},
    ],
)
def test_ray_settings_that_cannot_be_kept_are_refused(ray: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(ray))):
        on_ray(**ray)
