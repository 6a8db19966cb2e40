"""Starts a Chromium that reaches nothing but this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.wait import eventually

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, and the pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",  # the microphone is granted
    "--use-fake-device-for-media-stream",
    "--force-prefers-reduced-motion",
    "--lang=en-GB",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """Return the path of a Chromium: ``CHROMIUM``, or one of the usual names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def running_chromium(program: str) -> Iterator[str]:
    """Start it with a profile of its own; yield the address of a page's socket."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            told = Path(profile) / "DevToolsActivePort"
            eventually(lambda: told.exists() and told.read_text().count("\n") == 1)
            port = told.read_text().split()[0]
            eventually(lambda: _pages(port))
            yield str(_pages(port)[0]["webSocketDebuggerUrl"])
        finally:
            process.kill()
            process.wait()


def _pages(port: str) -> list[dict[str, str]]:
    found = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
    return [each for each in found if each["type"] == "page"]
