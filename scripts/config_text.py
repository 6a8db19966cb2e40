"""Makes the text of config.yaml from the settings; ``make config`` writes that file."""

import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from bitinglip.settings import Section, Settings

HEAD = """\
# Every setting of BitingLip, with its default and what it is for.
#
# Order: defaults < this file (--config, else ./config.yaml, else $BITINGLIP_HOME/config.yaml)
# < environment (BITINGLIP_SERVER__PORT=8081) < --set server.port=8081 < flags.
# Made from bitinglip/settings/ by scripts/config_text.py.
"""
MODEL = "demo-echo"


def config_text() -> str:
    blocks = (_field(name, info) for name, info in Settings.model_fields.items())
    return HEAD + "".join(f"\n{block}" for block in blocks)


def _field(name: str, info: FieldInfo) -> str:
    help_line = f"# {info.description}\n" if info.description else ""
    shape: Any = info.annotation
    if get_origin(shape) is dict and issubclass(get_args(shape)[1], Section):
        name_of_one = info.examples[0] if info.examples else MODEL
        example = f"{name_of_one}:\n{textwrap.indent(_section(get_args(shape)[1]), '  ')}"
        return f"{help_line}{name}: {{}}\n{textwrap.indent(example, '#  ', lambda _: True)}"
    if isinstance(shape, type) and issubclass(shape, Section):
        return f"{help_line}{name}:\n{textwrap.indent(_section(shape), '  ')}"
    item = get_args(shape)[0] if get_origin(shape) is list else None
    if isinstance(item, type) and issubclass(item, Section):
        example = f"-\n{textwrap.indent(_section(item), '  ')}"
        return f"{help_line}{name}: []\n{textwrap.indent(example, '#  ', lambda _: True)}"
    # A field without a default is one of a list's items; the example shows one.
    value = info.examples[0] if info.is_required() and info.examples else info.default
    return f"{help_line}{name}: {_scalar(value)}\n"


def _section(shape: type[Section]) -> str:
    return "".join(_fields(shape))


def _fields(shape: type[Section]) -> Iterator[str]:
    return (_field(name, info) for name, info in shape.model_fields.items())


def _scalar(value: object) -> str:
    """Write YAML for a default: JSON is, and text goes bare where it stays text."""
    bare = isinstance(value, str) and yaml.safe_load(value) == value
    return str(value) if bare else json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(config_text())
