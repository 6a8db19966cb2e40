"""Draws requests from an OpenAPI document: nearly right ones, and ones that are wrong anywhere."""

import random
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

METHODS = ("get", "post", "put", "patch", "delete")
_JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        2**64,
        10**30,
        1e308,
        "",
        "x",
        "\0",
        "é\U0001f98a",
    ),
    *("\ud800", "a" * 5000, "../..", "demo", [], [[]], [None], {}, {"": None}, {"a": {"b": []}}),
]
_TEXTS = ("demo", "user", "hello", "", "nobody", "2026-11-27T00:00:00Z", "1", "*", "é\U0001f98a")
_NAMES = ("demo", "nobody", "org/deep", "..", "\0", "é", "a" * 300, "task-1", "%2F")
_ODD = 0.15  #: of all values, the part that is anything
_DEPTH = 6


class Fuzz:
    """Draws from one document; the same seed draws the same requests."""

    def __init__(self, document: Mapping[str, Any], seed: int) -> None:
        self._document = document
        self._draw = random.Random(seed)

    def operations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield each method and path with what is documented of them."""
        for path, item in self._document["paths"].items():
            for method in METHODS:
                if method in item:
                    yield method, path, item[method]

    def request(self, path: str, operation: Mapping[str, Any]) -> tuple[str, dict[str, Any], Any]:
        """Draw a path, a query and a body for an operation; the body is ... for none."""
        query = {}
        for parameter in operation.get("parameters", ()):
            name, schema = parameter["name"], parameter.get("schema", {})
            if parameter["in"] == "path":
                drawn = str(self._draw.choice(_NAMES))
                path = path.replace(f"{{{name}}}", quote(drawn, safe="/%"))
                path = path.replace(f"{{{name}:path}}", quote(drawn, safe="/%"))
            elif parameter["in"] == "query" and self._draw.random() < 0.6:
                query[name] = self.value(schema)
        content = operation.get("requestBody", {}).get("content", {})
        kind = content.get("application/json") or next(iter(content.values()), None)
        return path, query, ... if kind is None else self.value(kind.get("schema", {}))

    def value(self, schema: Any, depth: int = 0) -> Any:
        """Draw a value of a schema, or, once in a while, anything."""
        draw = self._draw
        if draw.random() < _ODD * (depth > 0) or depth > _DEPTH or not isinstance(schema, dict):
            return draw.choice(_JUNK)
        if "$ref" in schema:
            return self.value(self._resolved(schema["$ref"]), depth)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.value(draw.choice(schema[several]), depth + 1)
        if "enum" in schema:
            return draw.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        kinds = schema.get("type", "object" if "properties" in schema else "any")
        return self._of_kind(
            draw.choice(kinds) if isinstance(kinds, list) else kinds, schema, depth
        )

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        draw = self._draw
        match kind:
            case "object":
                properties = schema.get("properties", {})
                needed = schema.get("required", ())
                few = min(1.0, 4 / (len(properties) or 1))
                names = [each for each in properties if each in needed or draw.random() < few]
                return {name: self.value(properties[name], depth + 1) for name in names}
            case "array":
                items = schema.get("items", {})
                return [self.value(items, depth + 1) for _ in range(draw.randint(0, 2))]
            case "string":
                return draw.choice(_TEXTS)
            case "integer" | "number":
                low, high = schema.get("minimum", 0), schema.get("maximum", 10)
                return draw.choice([low, low - 1, high, high + 1, 1, 2, 0.5])
            case "boolean":
                return draw.random() < 0.5
            case "null":
                return None
            case _:
                return draw.choice(_JUNK)

    def _resolved(self, reference: str) -> Any:
        found: Any = self._document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        return found
