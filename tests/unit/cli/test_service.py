"""``doctor --as-service`` reads a unit of systemd; unit and machine are made up."""

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitinglip.settings import Settings
from cli.checks.service import Unit, every_difference, parse, span
from cli.main import app

ROOT = Path(__file__).parents[3]
GOOD = """\
LoadState=loaded
ActiveState=active
Result=success
User=bitinglip
SupplementaryGroups=video render
StateDirectory=bitinglip
Environment=BITINGLIP_HOME=/var/lib/bitinglip "TZ=a place"
TimeoutStopUSec=1min
OOMPolicy=continue
LimitMEMLOCK=infinity
PrivateDevices=no
DevicePolicy=auto
DeviceAllow=char-nvidia* rw
DeviceAllow=/dev/dxg rw
ProtectHome=no
ProtectSystem=full
MemoryDenyWriteExecute=no
NoNewPrivileges=yes
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Provide a root folder with the nodes of a card that every user may open."""
    for name in ("nvidiactl", "nvidia0", "nvidia-uvm"):
        node = tmp_path / "dev" / name
        node.parent.mkdir(exist_ok=True)
        node.touch()
        node.chmod(0o666)
    return tmp_path


def told(root: Path, *changes: str, environ: dict[str, str] | None = None) -> list[str]:
    """Return what is found of a good unit with some lines in place of its own."""
    names = {change.partition("=")[0] for change in changes}
    kept = [line for line in GOOD.splitlines() if line.partition("=")[0] not in names]
    unit = parse("bitinglip.service", "\n".join([*kept, *filter(None, changes)]))
    found = list(every_difference(unit, Settings(), environ or {}, root))
    assert all(finding.advice for finding in found if finding.level != "ok")
    return [
        f"{finding.detail}: {finding.advice}"
        for finding in found
        if finding.level != "ok" or len(found) == 1
    ]


def test_service_that_works_is_shown_with_its_user_and_home(machine: Path) -> None:
    (line,) = told(machine)
    assert line.startswith("bitinglip.service (active) runs as bitinglip, home /var/lib/bitinglip")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["PrivateDevices=yes"], "PrivateDevices=yes hides the card"),
        (["DeviceAllow=/dev/dxg rw"], "hide /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia0"),
        (["DeviceAllow=", "DevicePolicy=closed"], "add DeviceAllow=char-nvidia* rw"),
        (["DeviceAllow=char-nvidia rw"], "hide /dev/nvidia-uvm"),
        (["ProtectHome=yes", "Environment=BITINGLIP_HOME=/home/x"], "from its home /home/x"),
        (["ProtectHome=tmpfs", "Environment=", "User=root"], "from its home /root/.bitinglip"),
        (["ProtectSystem=strict", "StateDirectory="], "add ReadWritePaths=/var/lib/bitinglip"),
        (["MemoryDenyWriteExecute=yes"], "code that torch builds"),
        (["TimeoutStopUSec=10s"], "TimeoutStopSec is 10 s, and requests may take 30 s"),
        (["OOMPolicy=stop"], "takes the server along"),
        (["LimitMEMLOCK=8388608"], "set LimitMEMLOCK=infinity"),
        (["ActiveState=failed", "Result=oom-kill"], "it has failed (oom-kill)"),
    ],
)
def test_service_that_lacks_what_a_shell_has_is_told_which_line_is_wrong(
    changes: list[str], expected: str, machine: Path
) -> None:
    (line,) = told(machine, *changes)
    assert expected in line


@pytest.mark.parametrize(
    "changes",
    [
        ["ProtectHome=yes"],
        ["ProtectSystem=strict"],
        ["ProtectSystem=strict", "StateDirectory=", "ReadWritePaths=-/var/lib"],
        ["DeviceAllow=", "DevicePolicy=auto"],
        ["DeviceAllow=char-nvidia rw", "DeviceAllow=/dev/nvidia-uvm rw"],
        ["TimeoutStopUSec=infinity"],
        ["OOMPolicy="],
    ],
)
def test_service_that_hides_nothing_that_it_needs_works(changes: list[str], machine: Path) -> None:
    (line,) = told(machine, *changes)
    assert "bitinglip.service (active)" in line


def test_service_of_a_machine_without_a_card_may_hide_devices(tmp_path: Path) -> None:
    (line,) = told(tmp_path, "PrivateDevices=yes")
    assert "(active)" in line


def test_service_whose_user_may_not_open_the_card_is_told_the_group(machine: Path) -> None:
    node = machine / "dev/nvidia0"
    node.chmod(0o660)
    os.chown(node, 0, 0)
    mine = ["User=daemon", "SupplementaryGroups="]
    (line,) = told(machine, *mine)
    assert "daemon may not open /dev/nvidia0 (group root, mode 660)" in line
    assert "SupplementaryGroups=root" in line
    assert "(active)" in told(machine, "User=daemon", "SupplementaryGroups=root")[0]
    assert "(active)" in told(machine, "User=root")[0]
    node.chmod(0o600)
    assert "may not open" in told(machine, "User=daemon", "SupplementaryGroups=root")[0]


def test_service_lacks_the_node_that_only_a_helper_makes(machine: Path) -> None:
    (machine / "dev/nvidia-uvm").unlink()
    (line,) = told(machine)
    assert "/dev/nvidia-uvm does not exist" in line


def test_service_has_not_the_variables_of_the_shell(machine: Path) -> None:
    here = {"CUDA_VISIBLE_DEVICES": "1", "HF_TOKEN": "hf_secret", "PATH": "x", "TZ": "y"}
    (line,) = told(machine, environ=here)
    assert "CUDA_VISIBLE_DEVICES, HF_TOKEN is set in this shell" in line
    assert "secret" not in line
    given = "Environment=BITINGLIP_HOME=/var/lib/bitinglip CUDA_VISIBLE_DEVICES=1 HF_TOKEN=other"
    assert "(active)" in told(machine, given, environ=here)[0]
    assert "(active)" in told(machine, "EnvironmentFiles=/etc/x", environ=here)[0]


def test_service_that_we_ship_works(machine: Path) -> None:
    lines = (ROOT / "deploy/bitinglip.service").read_text().splitlines()
    shipped = [line for line in lines if "=" in line and line[0] not in "#["]
    text = "\n".join(shipped).replace("%S", "/var/lib").replace("TimeoutStopSec", "TimeoutStopUSec")
    unit = parse("bitinglip.service", text.replace("USec=60", "USec=1min"))
    assert [each.level for each in every_difference(unit, Settings(), {}, machine)] == ["ok"]


def test_service_spans_are_read_as_systemd_writes_them() -> None:
    assert span("1min 30s") == 90
    assert span("500ms") == 0.5
    assert span("infinity") is None
    assert Unit("x", {"Environment": ["'broken"]}).environment == {}


def test_service_is_read_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doctor() -> tuple[int, list[dict[str, str]]]:
        result = CliRunner().invoke(
            app,
            ["doctor", "--as-service", "--unit", "a.service", "--json", "--home", str(tmp_path)],
        )
        return result.exit_code, json.loads(result.stdout)

    monkeypatch.setenv("PATH", str(tmp_path))
    code, (finding,) = doctor()
    assert (code, finding["detail"]) == (1, "a.service cannot be read: systemctl is not there")
    command = tmp_path / "systemctl"
    command.write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    assert doctor()[1][0]["detail"] == "a.service cannot be read: no bus"
    command.write_text("#!/bin/sh\necho LoadState=not-found\n")
    assert doctor()[1][0]["detail"] == "a.service is not-found"
    command.write_text(f"#!/bin/sh\n[ \"$4\" = a.service ] && printf '%s' '{GOOD}'\n")
    code, found = doctor()
    assert "a.service (active) runs as bitinglip" in found[0]["detail"]
