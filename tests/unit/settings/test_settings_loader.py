"""Settings: the order of the layers, what they refuse, and how well they say it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bitinglip.settings import Server, Settings
from bitinglip.settings_loader import (
    SettingsError,
    check_bind,
    check_start,
    dotted,
    every_setting,
    load_settings,
)
from scripts.config_text import config_text

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(
    text: str | None = None,
    env: dict[str, str] | None = None,
    sets: tuple[str, ...] = (),
    flags: dict[str, Any] | None = None,
) -> Settings:
    file = Path("given.yaml")
    if text is not None:
        file.write_text(text)
    return load_settings(
        config=None if text is None else file,
        home=Path("home"),
        environ=env or {},
        sets=sets,
        flags=flags or {},
    )


def problems(*args: Any, **more: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(*args, **more)
    return caught.value.problems


def test_defaults_hold_where_nothing_is_set() -> None:
    assert load() == Settings()
    assert load("") == load("server:\nmodels:\n") == load("# nothing\n") == Settings()


def test_layers_win_over_those_before() -> None:
    text = "server: {port: 1, host: a, drain_timeout: 1.5, request_timeout: 1}"
    env = {"BITINGLIP_SERVER__PORT": "2", "BITINGLIP_SERVER__HOST": "b", "HOME": "/x"}
    sets = ("server.port=3", "server.host=c", "server.allowed_hosts=[x, y]")
    got = load(text, env, sets, {"server.port": 4, "server.host": None}).server
    assert got == Server(
        port=4, host="c", drain_timeout=1.5, request_timeout=1, allowed_hosts=["x", "y"]
    )


def test_config_file_of_the_working_directory_comes_before_the_home_s() -> None:
    Path("home").mkdir()
    Path("home/config.yaml").write_text("server: {port: 1}")
    assert load().server.port == 1
    Path("config.yaml").write_text("server: {host: here}")
    assert (load().server.port, load().server.host) == (8080, "here")
    assert load("queue: {max_waiting: 1}").server.host == "127.0.0.1"


def test_settings_of_models_by_name() -> None:
    env = {"BITINGLIP_MODELS__Demo-Echo__FAKE__FAULTS": "true"}
    dotted_name = 'models."a.b/c".dtype=float16'
    sets = (dotted_name, "models.x/y.preload=true", "models.x/y.fake={faults: on}")
    got = load("models: {x/y: {max_batch: 3}}", env, sets)
    assert got.model("a.b/c").dtype == "float16"
    assert got.model("Demo-Echo").fake.faults
    slashed = got.model("x/y")
    assert (slashed.preload, slashed.max_batch, slashed.fake.faults) == (True, 3, True)


def test_upstream_of_a_model_is_its_engine_only_where_servers_are_named() -> None:
    url = "http://10.0.0.5:8000/v1"
    for text in (url, f"{{url: {url}}}", f"{{url: [{url}]}}"):
        own = load(f"models:\n  far: {{engine: null, device: null, upstream: {text}}}\n").model(
            "far"
        )
        assert (own.engine, own.device, own.upstream.url) == ("upstream", "cpu", [url])
    unnamed = load("models:\n  here: {upstream: {url: [], read_timeout: 600}}\n").model("here")
    assert (unnamed.engine, unnamed.device) == (None, None)
    both = problems(f"models:\n  far: {{engine: text, upstream: {url}}}\n")
    assert "engine must be left out" in "\n".join(both)
    assert "upstream.url is missing" in "\n".join(problems("models: {far: {engine: upstream}}"))


def test_settings_of_models_without_any_are_made_once() -> None:
    settings = load("models:\n  one:\n    pin: true\n")
    assert settings.model("two") is settings.model("three") is not settings.model("one")


def test_confine_off_may_be_written_plainly_though_yaml_reads_it_as_false() -> None:
    assert load("workers: {confine: off}").workers.confine == "off"
    assert load(sets=("workers.confine=off",)).workers.confine == "off"
    assert load(env={"BITINGLIP_WORKERS__CONFINE": "require"}).workers.confine == "require"
    assert "workers.confine should be" in "\n".join(problems("workers: {confine: on}"))


def test_settings_in_a_list_are_checked() -> None:
    text = "devices:\n  fake:\n    - {name: a, memory_bytes: 5}\n    - {name: b, memory_bytes: 6}\n"
    for got in (
        load(text),
        load(
            env={"BITINGLIP_DEVICES__FAKE": yaml.safe_dump(yaml.safe_load(text)["devices"]["fake"])}
        ),
        load(sets=("devices.fake=[{name: a, memory_bytes: 5}, {name: b, memory_bytes: 6}]",)),
    ):
        assert [(each.name, each.memory_bytes) for each in got.devices.fake] == [("a", 5), ("b", 6)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "devices:\n  fake:\n  - {name: a, memory_bytes: 5}\n  - {name: b, memory_bytes: 0}\n",
            "given.yaml:4: devices.fake[1].memory_bytes should be greater than 0, not 0",
        ),
        (
            "devices: {fake: [{nam: a, memory_bytes: 5}]}\n",
            "there is no setting devices.fake[0].nam; did you mean devices.fake[0].name?",
        ),
        ("devices: {fake: [{memory_bytes: 5}]}\n", "devices.fake[0].name"),
        ("devices: {fake: [5]}\n", "devices.fake[0] should be a valid section, not 5"),
        ("devices: {fake: {name: a}}\n", "devices.fake should be a valid list"),
        ("devices: {cpu_memory_bytes: 0}\n", "devices.cpu_memory_bytes should be greater than 0"),
        ("devices: {headroom_bytes: -1}\n", "devices.headroom_bytes should be greater"),
        ("devices: {memory_limit: {'0': 0}}", "the limit of '0' should be greater than 0"),
        ("devices: {memory_limit: {all: x}}", "devices.memory_limit.all should be a valid integer"),
    ],
)
def test_problems_of_devices_are_told(text: str, problem: str) -> None:
    assert problem in "\n".join(problems(text))


def test_memory_limit_of_a_card_may_be_set_by_its_index() -> None:
    assert load("devices: {memory_limit: {'0': 7}}").devices.memory_limit == {"0": 7}
    for name in ("0", "GPU-1a", "all"):
        given = load(sets=(f"devices.memory_limit.{name}=8",)).devices
        assert given.memory_limit == {name: 8}


def test_environment_names_that_are_reserved_are_no_settings() -> None:
    names = ("BITINGLIP_HOME", "BITINGLIP_URL", "BITINGLIP_API_KEY")
    assert load(env=dict.fromkeys(names, "x")) == Settings()


def test_problems_are_told_with_their_place_and_the_nearest_name() -> None:
    text = (
        "server:\n  prot: 1\n  tls_cert: 7\n"
        "sever: {port: 1}\nqueue:\n  max_waiting: 0\nserver:\n  port: 5\n3: x\n"
    )
    env = {"BITINGLIP_PORT": "1", "BITINGLIP_HUB__OFFLINE": "perhaps"}
    sets = ("models.m.dtipe=1", "nonsense", "server.allowed_hosts=[a, 2]", "demo=[")
    told = "\n".join(problems(text, env, sets, {"server.port": "x"}))
    for expected in (
        "given.yaml:2: there is no setting server.prot; did you mean server.port?",
        "given.yaml:3: server.tls_cert should be a valid string, not 7",
        "given.yaml:4: there is no setting sever; did you mean server?",
        "given.yaml:6: queue.max_waiting should be greater than or equal to 1, not 0",
        "given.yaml:7: server is set twice",
        "given.yaml:9: the key 3 is not text; put it in quotes",
        "environment BITINGLIP_PORT: there is no setting port; did you mean server.port?",
        "environment BITINGLIP_HUB__OFFLINE: hub.offline should be a valid boolean, not 'perhaps'",
        "--set models.m.dtipe=1: there is no setting models.m.dtipe; did you mean models.m.dtype?",
        "--set nonsense: write it as section.key=value",
        "--set server.allowed_hosts=[a, 2]: server.allowed_hosts[1] should be a valid string",
        "--set demo=[: this is not YAML",
        "--port: server.port should be a valid integer, not 'x'",
    ):
        assert expected in told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: [1, }", "given.yaml:1: this is not YAML"),
        ("a: 1\nb: 2: 3\n", "given.yaml:2: this is not YAML"),
        ("- a\n", "given.yaml:1: sections are expected here"),
        ("server: 7\n", "given.yaml:1: server should be a valid section, not 7"),
        ("server:\n  port: 1\n  port: 2\n", "given.yaml:3: server.port is set twice"),
        ("server: &s {port: true}\n", "server.port should be a valid integer, not True"),
        ("server: {host: !!python/name:os.system x}\n", "given.yaml:1: this is not YAML"),
        ("workers: {threads: .nan}\n", "workers.threads should be a"),
        ("a: &a {b: *a}\n", "given.yaml: this is nested too deeply"),
        ("a: 1\n---\nb: 1\n", "given.yaml:2: this is not YAML"),
        (
            "server:\n  trusted_proxies: [nginx]\n",
            "given.yaml:2: server.trusted_proxies[0]: 'nginx' is no address and no network such as",
        ),
        (
            "security: {key_rotation: {max_age: 1d, notice: 2d}}\n",
            "given.yaml:1: security.key_rotation: notice must be shorter than max_age",
        ),
        *(
            (f"{section}: {{{name}: soon}}\n", f"{section}.{name}: 'soon' is no number of seconds")
            for section, name in (
                ("cache", "ttl"),
                ("usage", "retention"),
                ("tasks", "retention"),
                ("files", "retention"),
                ("residency", "keep_alive"),
            )
        ),
    ],
)
def test_problem_of_one_setting_is_told(text: str, problem: str) -> None:
    told = "\n".join(problems(text))
    assert problem in told
    assert "Value error" not in told


def test_retention_may_be_a_span() -> None:
    text = "usage: {retention: 90d}\ntasks: {retention: 12h}\nfiles: {retention: 30m}\n"
    got = load(text)
    assert got.usage.retention == 90 * 86_400
    assert (got.tasks.retention, got.files.retention) == (43_200, 1_800)


@pytest.mark.parametrize(
    "value", ["\udcff", "\x00", "\x1b[2J", "[" * 5000, "*x", "!!binary é", "'"]
)
def test_config_file_with_any_values_does_not_break_the_reader(value: str) -> None:
    for told in (
        problems(env={"BITINGLIP_SERVER__PORT": value}),
        problems(sets=(f"server.port={value}",)),
    ):
        assert len(told) == 1
        assert "\n" not in told[0]


def test_config_file_that_cannot_be_read_is_a_problem() -> None:
    file = Path("bad.yaml")
    with pytest.raises(SettingsError, match=r"bad\.yaml: No such file"):
        load_settings(config=file, home=Path(), environ={}, sets=[], flags={})
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"bad\.yaml: this is not UTF-8"):
        load_settings(config=file, home=Path(), environ={}, sets=[], flags={})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_bind(load(sets=(f'server.host="{host}"', "security.require_api_key=false")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "example.org", "127.1"])
def test_host_that_is_public_needs_keys(host: str) -> None:
    sets = (f'server.host="{host}"', "security.require_api_key=false")
    with pytest.raises(SettingsError, match=r"security\.allow_insecure"):
        check_bind(load(sets=sets))
    check_bind(load(sets=(*sets, "security.allow_insecure=true")))
    check_bind(load(sets=sets[:1]))


def test_config_yaml_says_what_settings_py_says() -> None:
    text = (ROOT / "config.yaml").read_text()
    assert text == config_text(), "run: make config"
    assert load(text) == Settings()


def test_config_yaml_lists_every_setting() -> None:
    text = (ROOT / "config.yaml").read_text()
    bare = text.replace("fake: []", "fake:")
    for name in ("models", "endpoints"):
        bare = bare.replace(f"{name}: {{}}", f"{name}:")
    shown = yaml.safe_load(bare.replace("\n#  ", "\n  ").replace("\n  #  ", "\n    "))
    for path, info in every_setting():
        node: Any = shown
        for key in path:
            node = node[{"<name>": next(iter(node), ""), "<n>": 0}.get(key, key)]
        if not isinstance(node, dict):
            assert info.description, f"{dotted(path)} has no help"
            assert f"# {info.description}\n" in text
    assert load(yaml.safe_dump(shown)).model("demo-echo") == Settings().model("demo-echo")


@pytest.mark.parametrize(
    ("sets", "missing"),
    [
        (("gateways.folder=/shared",), "database.url"),
        (("database.url=postgresql://h/d",), "gateways.folder"),
        (("database.url=postgresql://h/d", "gateways.folder=shared"), "whole path"),
        (
            ("database.url=postgresql://h/d", "gateways.folder=/s", "gateways.lease=2"),
            "three times",
        ),
    ],
)
def test_gateways_that_share_are_refused_without_what_they_share(
    sets: tuple[str, ...], missing: str
) -> None:
    with pytest.raises(SettingsError, match=missing):
        check_start(load(sets=("gateways.shared=true", *sets)))
    check_start(load(sets=sets))
