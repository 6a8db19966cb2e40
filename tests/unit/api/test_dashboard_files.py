"""The dashboard's files: what is vendored, what they load, and which routes they ask."""

import hashlib
import json
import posixpath
import re
from pathlib import PurePosixPath

import pytest
from fastapi.routing import APIRoute

from bitinglip import api
from bitinglip.api.dashboard import FOLDER, PAGE, read_files
from bitinglip.settings import Settings

VENDOR = FOLDER / "vendor"
LICENCES = {"MIT": "MIT", "Apache-2.0": "Apache"}
OWN = {path: text.body.decode() for path, text in read_files().items() if "vendor/" not in path}
SCRIPTS = {path: text for path, text in OWN.items() if path.endswith(".js")}
NAMESPACE = "http://www.w3.org/2000/svg"
MOST_LINES = 400
_IMPORT = re.compile(r"""(?:\bfrom\s*|\bimport\s*\(?\s*)["']([^"'\n]+)["']""")
_CALL = re.compile(
    r"""\bapi\.(get|post|patch|delete|blob|form|stream)\(\s*["`]((?:api/)?v1/[^"`?]*)"""
)
_METHODS = {"blob": {"GET"}, "form": {"POST"}, "stream": {"GET", "POST"}}


def test_vendored_files_are_those_of_the_manifest() -> None:
    manifest = json.loads((VENDOR / "manifest.json").read_text())
    listed = {"manifest.json"}
    for library in manifest:
        assert re.fullmatch(r"\d+\.\d+\.\d+", library["version"])
        licence = (VENDOR / library["licence_file"]).read_text()
        assert LICENCES[library["licence"]] in licence, library["name"]
        listed |= {library["licence_file"], *library["files"]}
        for name, told in library["files"].items():
            body = (VENDOR / name).read_bytes()
            for before, after in told.get("replaced", {}).items():
                assert after.encode() in body
                body = body.replace(after.encode(), before.encode())
            assert hashlib.sha256(body).hexdigest() == told["sha256"], name
    assert {path.name for path in VENDOR.iterdir()} == listed


def test_imports_lead_to_files_that_are_served() -> None:
    files = read_files()
    for path, text in {**SCRIPTS, **_vendored()}.items():
        for target in _IMPORT.findall(text):
            assert target.startswith("."), f"{path} imports {target}"
            found = PurePosixPath(path).parent
            for part in target.split("/"):
                found = found.parent if part == ".." else found / part
            assert str(found) in files, f"{path} imports {target}"


def _vendored() -> dict[str, str]:
    return {f"vendor/{path.name}": path.read_text() for path in VENDOR.glob("*.mjs")}


def test_files_of_ours_name_no_other_host() -> None:
    for path, text in OWN.items():
        left = text.replace(NAMESPACE, "")
        assert not re.search(r"https?:|[\"'`]//\w", left), path
        assert path.endswith(".js") or not re.search(r"@import|\burl\(", left), path


def test_page_has_nothing_inline() -> None:
    page = OWN[PAGE]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))
    assert re.findall(r"<script[^>]*></script>", page) == re.findall(r"<script.*?</script>", page)


def test_scripts_make_markup_of_sanitised_text_only() -> None:
    """Check that text of servers and models stays text; one module makes markup, of Markdown."""
    for path, text in SCRIPTS.items():
        assert not re.search(r"\beval\(|new Function|document\.write|\.innerHTML|outerHTML", text)
        if "dangerouslySetInnerHTML" in text:
            assert "DOMPurify.sanitize" in text, path


@pytest.mark.parametrize("path", sorted(SCRIPTS))
def test_scripts_are_short_and_say_what_they_hold(path: str) -> None:
    text = SCRIPTS[path]
    assert text.count("\n") <= MOST_LINES
    assert text.startswith(("/**", "//"))


def test_scripts_ask_for_routes_that_there_are() -> None:
    app = api.Application(docs_url=None, redoc_url=None)
    api.mount(app, Settings())
    routes = {
        (method, _shape(route.path_format))
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    asked = [
        (path, _METHODS.get(verb, {verb.upper()}), _shape("/" + target))
        for path, text in SCRIPTS.items()
        for verb, target in _CALL.findall(text)
    ]
    assert asked
    for path, methods, target in asked:
        assert any((method, target) in routes for method in methods), (path, methods, target)


def _shape(path: str) -> str:
    """Return a path whose parameters have no names: ``${...}`` of scripts, ``{...}`` of routes."""
    return re.sub(r"\$?\{[^{}]*\}", "{}", path)


def test_imported_names_are_exported() -> None:
    taken = re.compile(r"import\s*\{([^}]*)\}\s*from\s*[\"']([^\"']+)[\"']")
    for path, text in SCRIPTS.items():
        for names, target in taken.findall(text):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if found in SCRIPTS:
                for name in filter(None, re.split(r"[\s,]+", names)):
                    assert name in _exports(SCRIPTS[found]), f"{path} takes {name} from {target}"


def _exports(text: str) -> set[str]:
    made = r"^export (?:default )?(?:async )?(?:function|const|class) (\w+)"
    listed = re.findall(r"^export \{([^}]*)\}", text, re.MULTILINE)
    return {*re.findall(made, text, re.MULTILINE), *re.findall(r"\w+", " ".join(listed))}


def test_pages_are_modules_with_a_page() -> None:
    names = re.findall(r"import\(\"\./(pages/\w+\.js)\"\)", SCRIPTS["js/main.js"])
    assert len(names) == 10
    for name in names:
        assert re.search(r"^export default function \w+", SCRIPTS[f"js/{name}"], re.MULTILINE)


def test_tokens_and_icons_that_are_used_exist() -> None:
    defined = set(re.findall(r"^\s*(--[\w-]+):", OWN["css/tokens.css"], re.MULTILINE))
    icons = set(re.findall(r"^  (\w+): \"", SCRIPTS["js/ui/icons.js"], re.MULTILINE))
    for path, text in OWN.items():
        used = set(re.findall(r"var\((--[\w-]+)\)", text))
        assert used <= defined, (path, used - defined)
        drawn = set(re.findall(r"\bicon=\"(\w+)\"|Icon} name=\"(\w+)\"", text))
        assert {one or other for one, other in drawn} <= icons, path
