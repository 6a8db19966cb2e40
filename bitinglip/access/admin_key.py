"""The file of the home that holds the operator's key, admin.key, follows that key's rotations."""

import logging

from bitinglip.access import credentials
from bitinglip.home import Home
from bitinglip.private_files import replace_private

_log = logging.getLogger(__name__)


def replace_admin_key(home: Home, key: credentials.NewCredential) -> None:
    """Write a key's new secret to admin.key if the file holds this key."""
    try:
        if credentials.parse(home.admin_key.read_text("ascii").strip()) == key.id:
            replace_private(home.admin_key, f"{key.text}\n".encode())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        _log.warning("admin.key still holds the key from before its rotation: %s", error)
