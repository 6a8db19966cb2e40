"""A server whose user the system does not know, as with ``docker run --user 54321``."""

import shutil

import pytest

from tests.support.other_user import NEEDS_ROOT, UID, open_folder
from tests.support.server import running_server

#: The interpreter of the tests may lie where only root may read, so that right is kept.
AS_UNKNOWN = (
    f"export HOME=/; unset USER LOGNAME; exec setpriv --reuid {UID} --regid {UID} --clear-groups "
    "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set="
    '-all,+dac_read_search "$@"'
)


@NEEDS_ROOT
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_user_without_a_passwd_entry_can_serve() -> None:
    with open_folder() as folder:
        folder.chmod(0o777)
        log = folder / "home.log"
        log.touch()
        (folder / "home").mkdir()
        shutil.chown(folder / "home", UID, UID)
        sets = ("--set", "demo=never", "--set", "models.demo-echo.engine=fake")
        confine = ("--set", "workers.confine=off")  # a confined worker gives up the right above
        with running_server(folder / "home", *sets, *confine, shell=AS_UNKNOWN) as server:
            body = {"model": "demo-echo", "prompt": "a b", "max_tokens": 2}
            with server.client() as client:
                answer = client.post("/api/v1/inference/text-generation", json=body)
            assert answer.status_code == 200, answer.text
            assert (folder / "home/secret.key").stat().st_uid == UID
            assert server.stop() == 0
        assert "Traceback" not in log.read_text()
