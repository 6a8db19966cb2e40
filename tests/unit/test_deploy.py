"""Files of deploy/ agree with the server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from bitinglip.settings import Settings
from bitinglip.settings.sections import Server
from bitinglip.settings_loader import check_start, every_setting, load_settings
from workers import pool

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()
#: from SIGTERM: requests may end, then workers are asked, then killed, and the rest is closed
LONGEST_STOP = Server().drain_timeout + 2 * pool._ENDING_SECONDS + 5


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """Provide the assignments of the systemd unit, in their order."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "deploy/bitinglip.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    """Provide the service of the Compose file."""
    service: dict[str, Any] = composed("compose.yaml")["services"]["bitinglip"]
    return service


def composed(name: str) -> dict[str, Any]:
    """Read a file for Compose; a tag of its own resets what another file has."""
    text = (ROOT / "deploy" / name).read_text().replace("!reset ", "")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_unit_waits_longer_than_a_stop_and_a_start_take(unit: dict[str, list[str]]) -> None:
    [stop], [start] = unit["TimeoutStopSec"], unit["TimeoutStartSec"]
    assert seconds(stop) > LONGEST_STOP
    assert seconds(start) > seconds(stop)


def test_unit_keeps_its_cards(unit: dict[str, list[str]]) -> None:
    assert unit.keys().isdisjoint({"PrivateDevices", "DevicePolicy"})
    allowed = [device.split()[0] for device in unit["DeviceAllow"]]
    assert allowed == ["char-nvidia*", "/dev/dxg"]
    assert unit["SupplementaryGroups"] == ["video render"]
    # The list of devices is read once, so the modules must be there before it is.
    modules = "modprobe@nvidia.service modprobe@nvidia_uvm.service"
    assert modules in unit["Wants"]
    assert modules in unit["After"]
    # NoNewPrivileges keeps the helper that makes the nodes from working for the server itself.
    assert unit["NoNewPrivileges"] == ["yes"]
    [helper] = unit["ExecStartPre"]
    assert helper.startswith("-+")


def test_unit_outlives_a_worker_that_the_kernel_killed(unit: dict[str, list[str]]) -> None:
    assert unit["OOMPolicy"] == ["continue"]
    assert unit["ManagedOOMPreference"] == ["avoid"]
    assert unit["LimitMEMLOCK"] == ["infinity"]
    assert unit["Restart"] == ["on-failure"]


def test_unit_gives_up_what_the_product_does_not_need(unit: dict[str, list[str]]) -> None:
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["ProtectSystem"] == ["strict"]
    [denied] = unit["SystemCallFilter"]
    assert denied.startswith("~")
    # Workers confine themselves by these, and pin memory.
    assert not {"@sandbox", "@memlock", "@resources"} & set(denied[1:].split())


def test_unit_leaves_what_cards_and_compilers_need(unit: dict[str, list[str]]) -> None:
    broken_by = {"PrivateUsers", "ProcSubset", "MemoryDenyWriteExecute", "PrivateNetwork"}
    assert unit.keys().isdisjoint(broken_by)
    [families] = unit["RestrictAddressFamilies"]
    assert {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"} == set(families.split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_unit_is_exposed_little_by_systemd_s_own_measure() -> None:
    unit = ROOT / "deploy/bitinglip.service"
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_unit_is_understood_by_systemd(tmp_path: Path) -> None:
    text = (ROOT / "deploy/bitinglip.service").read_text()
    unit = tmp_path / "bitinglip.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # Units of the machine's own have troubles of their own.
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


def test_compose_waits_longer_than_a_stop_and_takes_cards_by_cdi(service: dict[str, Any]) -> None:
    assert seconds(service["stop_grace_period"]) > LONGEST_STOP
    assert service["devices"] == ["nvidia.com/gpu=all"]
    assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["ports"] == [f"127.0.0.1:{Settings().server.port}:{Settings().server.port}"]
    [volume] = service["volumes"]
    assert f"BITINGLIP_HOME={volume.partition(':')[2]}" in DOCKERFILE


def test_image_documents_a_stop_that_is_longer_than_the_drain() -> None:
    documents = [DOCKERFILE, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    stops = [
        int(found) for text in documents for found in re.findall(r"--stop-timeout (\d+)", text)
    ]
    assert stops
    assert min(stops) > LONGEST_STOP
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_image_asks_for_the_cuda_of_the_torch_that_it_installs() -> None:
    """torch 2.13's wheels are for CUDA 13.0: another torch is another line in the image."""
    assert 'NVIDIA_REQUIRE_CUDA="cuda>=13.0"' in DOCKERFILE
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in DOCKERFILE
    assert "\ntorch==2.13." in (ROOT / "constraints.txt").read_text()


def test_image_has_what_it_runs() -> None:
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sent = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
        assert path in sent, f"{path} is not sent to the build"
    assert '"/opt/bitinglip/healthcheck.py"' in DOCKERFILE
    assert "g++" in DOCKERFILE  # for image.compile


def test_image_fetches_dependencies_before_the_code_is_there() -> None:
    """A change of the code must not fetch gigabytes again, in no stage."""
    stages = re.split(r"^FROM .+?(?: AS (\w+))?$", DOCKERFILE, flags=re.MULTILINE)
    dependencies = stages[stages.index("dependencies") + 1]
    assert "COPY bitinglip" not in dependencies
    assert "--requirement requirements.txt" in dependencies
    assert "COPY --from=dependencies /opt/bitinglip /opt/bitinglip" in stages[-1]
    later = DOCKERFILE.partition(" AS build\n")[2]
    installs = re.findall(r"pip (?:install|wheel) .+", later)
    assert len(installs) == 2
    assert all("--no-deps" in each for each in installs)


def test_image_runs_as_a_user_by_its_number() -> None:
    [number] = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert f"\nUSER {number}:{number}\n" in DOCKERFILE


def test_image_names_what_it_depends_on_from_the_project_s_file() -> None:
    """The program in the image, run here: it prints what pip is to install."""
    [program] = re.findall(r'RUN python -c "(.+?)" \\\n', DOCKERFILE, re.DOTALL)
    program = program.replace("\\\n", "").replace("    ", "")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    wanted = done.stdout.splitlines()
    assert any(each.startswith("torch>=") for each in wanted)
    assert any(each.startswith("opentelemetry-sdk>=") for each in wanted)


def test_compose_files_are_what_compose_understands() -> None:
    for name in ("compose.yaml", "compose.reservation.yaml", "compose.cluster.yaml"):
        told = composed(name)
        for service in told["services"].values():
            service.pop("devices", None)  # the library knows no CDI, which Compose does
        PyCompose.from_yaml(yaml.safe_dump(told)).validate()


def test_compose_reserves_cards_where_the_host_has_no_cdi() -> None:
    # Compose adds the lists of both files unless one is reset.
    assert "devices: !reset []" in (ROOT / "deploy/compose.reservation.yaml").read_text()
    deployed = composed("compose.reservation.yaml")["services"]["bitinglip"]["deploy"]
    [reserved] = deployed["resources"]["reservations"]["devices"]
    assert (reserved["driver"], reserved["count"]) == ("nvidia", "all")
    assert reserved["capabilities"] == ["gpu", "utility", "compute"]


def test_image_is_found_clean_by_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [program, "Dockerfile.cuda"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_cluster_has_the_settings_that_several_gateways_need() -> None:
    """Each of its variables is a setting, and the gateways may end what they do."""
    told = composed("compose.cluster.yaml")
    known = {f"BITINGLIP_{'__'.join(path)}".upper() for path, _ in every_setting()}
    gateways = [told["services"][f"gateway-{n}"] for n in (1, 2)]
    for gateway in gateways:
        own = {name: value for name, value in gateway["environment"].items() if "__" in name}
        assert own.keys() <= known
        settings = load_settings(config=None, home=Path("nowhere"), environ=own)
        check_start(settings)
        assert settings.gateways.shared
        stop = LONGEST_STOP + settings.server.drain_notice
        assert seconds(gateway["stop_grace_period"]) > stop
        assert f"shared:{settings.gateways.folder}" in gateway["volumes"]
    assert gateways[0]["volumes"] != gateways[1]["volumes"]
    servers = re.findall(r"server (gateway-\d):8080", nginx := nginx_conf())
    assert servers == ["gateway-1", "gateway-2"]
    assert "hash $http_authorization" in nginx


def nginx_conf() -> str:
    return (ROOT / "deploy/nginx.cluster.conf").read_text()
