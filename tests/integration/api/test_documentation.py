"""/docs and /openapi.json: complete, and without anything from another host."""

import json
import re

import httpx
import pytest

from tests.support.api_server import Served
from tests.support.http_client import NATIVE, error_of

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def test_docs_page_loads_only_files_of_this_server(served: Served) -> None:
    page = httpx.get(served.url + "/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == POLICY
    assert "//" not in page.text  # no address of another host, with a scheme or without
    assert not re.search(r"<script>|<style|style=|\son[a-z]+=", page.text)  # nothing inline
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        if not address.startswith("data:"):
            found = httpx.get(httpx.URL(served.url + "/docs").join(address))
            assert found.status_code == 200, address
            assert len(found.content) > 50
            assert found.headers["content-security-policy"] == POLICY
            kind = "text/css" if address.endswith("css") else "text/javascript"
            assert found.headers["content-type"].startswith(kind)


def test_docs_script_asks_this_server_for_the_schema_and_nobody_to_validate_it(
    served: Served,
) -> None:
    script = httpx.get(served.url + "/docs/start.js").text
    assert 'url: "openapi.json"' in script
    assert "validatorUrl: null" in script
    assert "//" not in script


@pytest.mark.parametrize("name", ["favicon.png", "..%2F__init__.py", "%2e%2e", "core.py", "x"])
def test_docs_files_are_only_those_of_the_page(served: Served, name: str) -> None:
    error_of(httpx.get(f"{served.url}/docs/{name}"), 404, "NOT_FOUND")


def test_documentation_describes_bodies_errors_and_authentication(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    operation = schema["paths"][NATIVE]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "max_tokens" in body["properties"]
    assert "$defs" not in json.dumps(schema)
    assert set(operation["responses"]) == {"200", "default"}
    assert "422" not in schema["paths"]["/api/v1/models/{model_id}"]["get"]["responses"]
    assert schema["security"] == [{"bearer": []}, {"api_key": []}]
