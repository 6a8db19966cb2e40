"""Lists the settings from the classes that declare them."""

import json
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from bitinglip.settings import Section
from bitinglip.settings_loader import dotted, every_setting
from scripts.reference.page import table

HEAD = """\
# Settings

Each can stand in `config.yaml` (which shows all with their defaults), in the environment
(`BITINGLIP_SERVER__PORT=8081`) or in the command (`bitinglip serve --set server.port=8081`).
`bitinglip config check` names what is wrong, `bitinglip config show` what applies.
"""


def page() -> str:
    parts = [HEAD]
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for path, info in every_setting():
        if not _is_section(info):
            name = path[0] if len(path) > 1 else "(top level)"
            sections.setdefault(name, []).append(_row(dotted(path), info))
    for name, rows in sections.items():
        parts.append(f"\n## {name}\n\n{table(('setting', 'default', 'meaning'), rows)}")
    return "".join(parts)


def _row(name: str, info: FieldInfo) -> tuple[str, str, str]:
    default = "required" if info.is_required() else f"`{_shown(info.default)}`"
    return f"`{name}`", default, info.description or ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def _is_section(info: FieldInfo) -> bool:
    shape: Any = info.annotation
    if get_origin(shape) in (dict, list):
        shape = get_args(shape)[-1]
    return isinstance(shape, type) and issubclass(shape, Section)
