"""Reads the settings: defaults < YAML file < environment < --set < flags.

Every layer becomes a list of assignments (path, value, where it was said); they are laid into one
tree, the tree is validated once, and each problem is told with the place that caused it.

A path is written with dots. A part that holds dots itself is quoted: ``models."a.b/c".dtype``.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bitinglip.settings import Section, Settings

Keys = tuple[str | int, ...]
PREFIX = "BITINGLIP_"
NOT_SETTINGS = frozenset({"BITINGLIP_HOME", "BITINGLIP_URL", "BITINGLIP_API_KEY"})

_DEEPEST = 16
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PART = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([^."'=]+))\s*""")


class SettingsError(Exception):
    """The settings are wrong; the message has a line for each problem, with its place."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def load_settings(
    *,
    config: Path | None = None,
    home: Path,
    environ: Mapping[str, str],
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge the settings of all layers. Raises SettingsError with all problems.

    ``flags`` maps dotted paths to values that are typed already; None is a flag that was not given.
    """
    layers = _Layers()
    if (file := find_config(config, home)) is not None:
        layers.add_file(file)
    for name, value in environ.items():
        layers.add_variable(name, value)
    for text in sets:
        layers.add_set(text)
    for name, value in (flags or {}).items():
        if value is not None:
            layers.put(tuple(name.split(".")), value, f"--{name.rpartition('.')[2]}")
    return layers.validated()


def find_config(config: Path | None, home: Path) -> Path | None:
    """Return the file to read: the one asked for, else ./config.yaml, else the one at home, else
    None."""
    if config is not None:
        return config
    return next((f for f in (Path("config.yaml"), home / "config.yaml") if f.exists()), None)


def check_start(settings: Settings) -> None:
    """Refuse settings of which each is valid, and that do not go together. Raises SettingsError."""
    check_bind(settings)
    check_gateways(settings)
    if settings.redis.cache and not (settings.redis.url and settings.cache.responses):
        problem = "redis.cache keeps nothing unless redis.url and cache.responses are set"
        raise SettingsError([problem])


def check_bind(settings: Settings) -> None:
    """Refuses to be open to a network without keys; called before the server binds."""
    secure = settings.security.require_api_key or settings.security.allow_insecure
    if not secure and "*" in settings.server.cors_origins:
        problem = (
            "server.cors_origins allows every web page while security.require_api_key is false; "
            "name the origins, require keys, or set security.allow_insecure to true"
        )
        raise SettingsError([problem])
    if not secure and "*" in settings.server.allowed_hosts:
        problem = (
            "server.allowed_hosts accepts every name while security.require_api_key is false, so "
            "every web page may lead its own name here; name the hosts, require keys, or set "
            "security.allow_insecure to true"
        )
        raise SettingsError([problem])
    if not secure and not _is_loopback(settings.server.host):
        problem = (
            f"server.host {settings.server.host!r} is open to others while "
            "security.require_api_key is false; require keys, listen on 127.0.0.1, or set "
            "security.allow_insecure to true"
        )
        raise SettingsError([problem])


def check_gateways(settings: Settings) -> None:
    """Refuses to share a database without what its servers must share; called before the start."""
    own = settings.gateways
    if own.shared and settings.database.url is None:
        problem = "gateways.shared needs database.url: several servers share a PostgreSQL database"
        raise SettingsError([problem])
    if own.shared and (own.folder is None or not Path(own.folder).is_absolute()):
        problem = (
            "gateways.shared needs gateways.folder: the whole path of a folder that all servers "
            "reach, for the files of tasks, uploads and batches"
        )
        raise SettingsError([problem])
    if own.shared and own.lease < 3 * own.heartbeat:
        raise SettingsError(["gateways.lease must be at least three times gateways.heartbeat"])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass
class _Layers:
    """Collects what was set so far, where, and what is wrong with it."""

    tree: dict[Any, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "this is not UTF-8"
            self.problems.append(f"{path}: {reason}")
            return
        self._add_yaml(text, (), lambda node: f"{path}:{node.start_mark.line + 1}", str(path))

    def add_variable(self, name: str, value: str) -> None:
        """Add the setting of a variable BITINGLIP_SECTION__KEY; a model's name keeps its case, the
        rest is lower case."""
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            return
        parts = name.removeprefix(PREFIX).split("__")
        keys = [part.lower() for part in parts]
        if keys[0] == "models":
            keys[1:2] = parts[1:2]
        where = f"environment {name}"
        self._add_yaml(value, tuple(keys), lambda _: where, where)

    def add_set(self, text: str) -> None:
        where = f"--set {text}"
        keys, value = split_set(text)
        if value is None:
            self.problems.append(f"{where}: write it as section.key=value")
            return
        self._add_yaml(value, keys, lambda _: where, where)

    def _add_yaml(
        self, text: str, at: Keys, where: Callable[[yaml.Node], str], source: str
    ) -> None:
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is None:
                self.put(at, None, source)
            else:
                self._add_node(loader, node, at, where(node), where)
        except (yaml.YAMLError, UnicodeError) as error:
            self.problems.append(_syntax_problem(error, at, source))
        except RecursionError:
            self.problems.append(f"{source}: this is nested too deeply")

    def _add_node(
        self,
        loader: Any,
        node: yaml.Node,
        at: Keys,
        place: str,
        where: Callable[[yaml.Node], str],
    ) -> None:
        """Lays a YAML node into the tree, its mappings key by key."""
        if len(at) > _DEEPEST:  # an alias may lead back to itself
            raise RecursionError
        if not isinstance(node, yaml.MappingNode):
            self.put(at, loader.construct_object(node, deep=True), place)
            if isinstance(node, yaml.SequenceNode):
                self.origins |= {(*at, i): where(item) for i, item in enumerate(node.value)}
            return
        self.put(at, {}, place)
        seen = set()
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            place = where(key_node)
            if not isinstance(key, str):
                self.problems.append(f"{place}: the key {key!r} is not text; put it in quotes")
            elif key in seen:
                self.problems.append(f"{place}: {dotted((*at, key))} is set twice")
            else:
                seen.add(key)
                self._add_node(loader, value_node, (*at, key), place, where)

    def put(self, keys: Keys, value: Any, where: str) -> None:
        """Sets one value; a mapping, and null in the place of one, only makes sure it is there."""
        is_section = _is_section(_schema_at(keys))
        if value is None and is_section:
            value = {}
        if not keys:
            if value != {}:
                self.problems.append(f"{where}: sections are expected here, as in 'server:'")
            return
        node = self.tree
        for depth, key in enumerate(keys[:-1], start=1):
            self.origins.setdefault(keys[:depth], where)
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        if value != {} or not isinstance(node.get(keys[-1]), dict):
            node[keys[-1]] = value
        self.origins[keys] = where

    def validated(self) -> Settings:
        problems = self.problems
        try:
            settings = Settings.model_validate(self.tree, strict=True)
        except ValidationError as error:
            problems = problems + [self._problem(detail) for detail in error.errors()]
        if problems:
            raise SettingsError(problems)
        return settings

    def _problem(self, detail: ErrorDetails) -> str:
        keys = detail["loc"]
        where = next(
            (self.origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.origins),
            "settings",
        )
        if detail["type"] == "extra_forbidden":
            return f"{where}: there is no setting {dotted(keys)}{_hint(keys)}"
        if detail["type"] == "value_error":  # our own words, which quote what is wrong
            return f"{where}: {dotted(keys)}: {detail['ctx']['error']}"
        what = (
            detail["msg"]
            .replace("Input should", "should")
            .replace(
                "dictionary or instance of " + str(detail.get("ctx", {}).get("class_name")),
                "section",
            )
        )
        return f"{where}: {dotted(keys)} {what}, not {_short(detail['input'])}"


def _syntax_problem(error: Exception, at: Keys, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{source}:{mark.line + 1}" if mark is not None and not at else source
    reason = getattr(error, "problem", None) or str(error)
    return f"{place}: this is not YAML: {' '.join(reason.split())}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def split_set(text: str) -> tuple[Keys, str | None]:
    """Return the path and the value of ``section.key=value``; None where it is not of that form."""
    keys: list[str] = []
    position = 0
    while part := _PART.match(text, position):
        keys.append(next(group for group in part.groups() if group is not None).strip())
        position = part.end()
        if text[position : position + 1] == "=":
            return tuple(keys), text[position + 1 :]
        if text[position : position + 1] != ".":
            break
        position += 1
    return (), None


def dotted(keys: Keys) -> str:
    """Write a path as one writes it after --set; list positions as [0]."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (f'"{key}"' if re.search(r"[.=\s]", key) else key)
    return text


def every_setting(
    section: type[Section] = Settings, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield path and field of each section and setting, in their order.

    A model's name is ``<name>``, the position in a list of sections ``<n>``.
    """
    for name, info in section.model_fields.items():
        path = (*at, name)
        yield path, info
        shape = info.annotation
        if get_origin(shape) is dict:
            shape, path = get_args(shape)[1], (*path, "<name>")
        elif get_origin(shape) is list:
            shape, path = get_args(shape)[0], (*path, "<n>")
        if isinstance(shape, type) and issubclass(shape, Section):
            yield from every_setting(shape, path)


def _schema_at(keys: Keys) -> Any:
    """Return the declared type at a path; None where there is no such setting."""
    shape: Any = Settings
    for key in keys:
        if get_origin(shape) is dict:
            shape = get_args(shape)[1]
        elif get_origin(shape) is list and isinstance(key, int):
            shape = get_args(shape)[0]
        elif _is_section(shape) and key in shape.model_fields:
            shape = shape.model_fields[key].annotation
        else:
            return None
    return shape


def _is_section(shape: Any) -> bool:
    return get_origin(shape) is dict or (isinstance(shape, type) and issubclass(shape, Section))


def _hint(keys: Keys) -> str:
    """Return the nearest valid path: a neighbour's name, else the same name in another section."""
    *parent, last = keys
    neighbours = getattr(_schema_at(tuple(parent)), "model_fields", ())
    if near := difflib.get_close_matches(str(last), neighbours, 1):
        return f"; did you mean {dotted((*parent, near[0]))}?"
    if len(keys) > 2 and keys[0] == "models":
        return '; a name that holds dots is quoted: models."a.b".dtype'
    elsewhere = {path[-1]: path for path, _ in reversed([*every_setting()])}
    if near := difflib.get_close_matches(str(last), elsewhere, 1):
        return f"; did you mean {dotted(elsewhere[near[0]])}?"
    return ""
