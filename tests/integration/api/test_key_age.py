from datetime import datetime
from pathlib import Path

import httpx

from tests.support.api_server import serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.wait import eventually


def test_rotation_by_age_is_announced_on_every_answer_and_done_for_the_admin_key(
    tmp_path: Path,
) -> None:
    rotation = {"max_age": "1h", "notice": 3599.99}  # so all keys are old when the server starts
    with serve(tmp_path, security={"key_rotation": rotation}) as served:
        first = served.keys["admin"]
        eventually(lambda: served.home.admin_key.read_text().strip() != first)
        new = {"authorization": f"Bearer {served.home.admin_key.read_text().strip()}"}
        old, text = served.headers("admin"), served.headers("inference:text")
        for body in (PROMPT, {**PROMPT, "stream": True}):
            answer = httpx.post(served.url + NATIVE, json=body, headers=text)
            assert answer.status_code == 200
            assert {"deprecation", "sunset"} <= set(answer.headers)
        assert "sunset" in httpx.get(f"{served.url}/api/v1/keys", headers=old).headers
        keys = httpx.get(f"{served.url}/api/v1/keys", headers=new).json()["data"]
        admin = next(key for key in keys if key["name"] == "admin")
        assert datetime.fromisoformat(admin["grace_until"]) <= datetime.fromisoformat(
            admin["rotate_by"]
        )
        assert all(key["rotate_by"] for key in keys)
