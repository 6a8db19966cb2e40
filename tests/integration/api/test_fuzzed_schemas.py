"""Requests drawn from what /openapi.json documents: each is answered, none with a fault of ours."""

import json
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served
from tests.support.schema_fuzz import Fuzz

EACH = 3  #: requests of each operation
SEEDS = [64]
#: streams that end with their client, and what takes its time
ENDLESS = {"/api/v1/cluster/events", "/api/v1/debug/profile"}


def _is_error(path: str, shown: Any) -> bool:
    """Tell whether an answer has the one shape of errors, or Anthropic's on its surface."""
    error = shown.get("error") if isinstance(shown, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return False
    if path.startswith("/v1/messages"):
        return shown.get("type") == "error" and isinstance(error.get("type"), str)
    return isinstance(error.get("code"), str) and isinstance(error.get("type"), str)


@pytest.mark.parametrize("seed", SEEDS)
def test_documented_operations_answer_any_request_without_a_fault(
    served: Served, seed: int
) -> None:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        document = client.get("/openapi.json", headers=served.headers("admin")).json()
        fuzz = Fuzz(document, seed)
        asked = 0
        for method, template, operation in fuzz.operations():
            for _ in range(0 if template in ENDLESS else EACH):
                path, query, body = fuzz.request(template, operation)
                headers = served.headers("admin")
                content = None
                if body is not ...:
                    headers["content-type"] = "application/json"
                    content = json.dumps(body)
                params = {name: json.dumps(value) for name, value in query.items()}
                request = client.build_request(
                    method, path, params=params, headers=headers, content=content
                )
                with_body = f"{method} {path} {params} {(content or '')[:300]}"
                answer = client.send(request)
                asked += 1
                assert answer.status_code < 500, f"{with_body}: {answer.text[:300]}"
                if answer.status_code >= 400:
                    assert _is_error(path, answer.json()), f"{with_body}: {answer.text[:300]}"
    assert asked > 150
    served.wait_idle()
