"""Show the server's facts as the tables of ``status`` and ``top``. Pure.

Every field beyond the first releases' may be missing: the server may be older than this command.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.show.output import ago, clean, size

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

_BUSY_FIRST = {"error": 0, "loading": 1, "ready": 2, "available": 3, "downloading": 3}
_COLOURS = {
    "ready": "green",
    "busy": "green",
    "loading": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "error": "red",
    "failed": "red",
}


@dataclass(frozen=True)
class Rates:
    """Computes rates per second between two samples."""

    requests: float
    prompt_tokens: float
    completion_tokens: float


def board(
    found: Mapping[str, Any], rates: Rates | None, *, width: int, most_models: int
) -> "Group":
    """Put everything on one screen."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [headline(found, rates)]
    if devices := found.get("devices"):
        parts += ["", *devices_explained(devices, width), *_remarks(devices)]
    if missing := found.get("missing_card"):
        parts.append(Text(clean(f"A card is not used: {missing}"), style="yellow"))
    if models := found.get("models"):
        parts += ["", *model_table(models, most_models, width)]
    if workers := found.get("workers"):
        parts += ["", worker_table(workers, width)]
    return Group(*parts)


def headline(found: Mapping[str, Any], rates: Rates | None) -> "Text":
    from rich.text import Text

    parts = [f"BitingLip at {found['url']}: {found['status']}"]
    if (load := found.get("load")) is not None:
        parts.append(f"load {load:.0%}")
    parts.append(f"{found['in_flight']} in flight, {found['queued']} queued")
    if rates is not None:
        parts.append(
            f"{rates.requests:,.1f} requests/s, tokens/s {rates.prompt_tokens:,.0f} in "
            f"{rates.completion_tokens:,.0f} out"
        )
    return Text(clean("   ".join(parts)), style="bold")


def devices_explained(devices: Iterable[Mapping[str, Any]], width: int) -> "list[RenderableType]":
    """Return the table of devices, and what the parts of its bars are."""
    table = device_table(devices, width)
    return [table, *_legend(table)]


def device_table(devices: Iterable[Mapping[str, Any]], width: int) -> "Table":
    from rich.text import Text

    table = _table("DEVICE", "NAME", "MEMORY", "RESERVED", "FREE", "TOTAL", "BUSY", "HEAT", "POWER")
    for name in ("RESERVED", "FREE", "TOTAL", "BUSY", "HEAT", "POWER"):
        _column(table, name).justify = "right"
    bar = max(8, min(40, width - 90))
    for each in devices:
        total = each.get("memory_bytes") or 0
        table.add_row(
            _text(each.get("id")),
            Text(clean(str(each.get("name")))[: max(12, width - 80)].strip()),
            _bar(each, total, bar),
            size(each.get("reserved_bytes")),
            size(each.get("free_bytes")),
            size(total),
            _share(each.get("utilisation")),
            _unit(each.get("temperature_c"), "°C"),
            _unit(each.get("power_w"), "W"),
        )
    return _fitted(table, width, "RESERVED", "POWER", "HEAT", "MEMORY", "NAME", "BUSY")


def _remarks(devices: Iterable[Mapping[str, Any]]) -> "Iterator[Text]":
    """Say what is wrong with devices that take no new load, and what is special of others."""
    from rich.text import Text

    for each in devices:
        if reason := each.get("reason"):
            colour = "red" if each["state"] == "lost" else "yellow"
            yield Text(clean(f"{each['id']} is {each['state']}: {reason}"), style=colour)
        if slowed := each.get("slowed_by"):
            yield Text(clean(f"{each['id']} is slowed by {' and '.join(slowed)}"), style="yellow")
        if theirs := each.get("elsewhere_bytes"):
            told = f"{each['id']}: other gateways have reserved {size(theirs)} of it"
            yield Text(clean(told), style="dim")
        if note := each.get("note"):
            yield Text(clean(f"{each['id']} {note}"), style="dim")


def _legend(table: "Table") -> "Iterator[Text]":
    """Say what the parts of the memory's bars are, if the table has them."""
    from rich.text import Text

    if any(column.header == "MEMORY" for column in table.columns):
        parts = (("█", "green"), " our models  ", ("▒", "yellow"), " other programs  ")
        yield Text.assemble(*parts, ("·", "dim"), " free", style="dim")


def _bar(device: Mapping[str, Any], total: int, width: int) -> "Text":
    """Draw our memory, then what other programs and gateways hold, then what is free."""
    from rich.text import Text

    def cells(count: int) -> int:
        if not total or not count:
            return 0
        return max(1, round(width * min(count, total) / total))

    ours = cells(device.get("reserved_bytes") or 0)
    others = (device.get("foreign_bytes") or 0) + (device.get("elsewhere_bytes") or 0)
    theirs = min(width - ours, cells(others))
    return Text.assemble(
        ("█" * ours, "green"), ("▒" * theirs, "yellow"), ("·" * (width - ours - theirs), "dim")
    )


def model_table(
    models: Sequence[Mapping[str, Any]], most: int, width: int
) -> "list[RenderableType]":
    """List active models first; count the others when there are too many."""
    table = _table("MODEL", "STATUS", "REPLICAS", "RUNNING", "QUEUED", "WAITED", "ETA", "UNUSED")
    for name in ("REPLICAS", "RUNNING", "QUEUED", "WAITED", "ETA", "UNUSED"):
        _column(table, name).justify = "right"
    ranked = sorted(
        models,
        key=lambda model: (
            -(model.get("queued") or 0) - (model.get("running") or 0),
            _BUSY_FIRST.get(model["status"], 3),
        ),
    )
    for model in ranked[:most]:
        table.add_row(
            _text(model["model_id"] + (" (pinned)" if model.get("pinned") else "")),
            _model_state(model),
            _replicas(model),
            _count(model.get("running")),
            _count(model.get("queued")),
            _seconds(model.get("oldest_wait")),
            _seconds(model.get("eta") if model.get("queued") else None),
            _seconds(model.get("idle_seconds")),
        )
    table = _fitted(table, width, "UNUSED", "WAITED", "REPLICAS", "ETA")
    left = len(models) - most
    return [table, f"... {left} more"] if left > 0 else [table]


def worker_table(workers: Iterable[Mapping[str, Any]], width: int) -> "Table":
    table = _table("WORKER", "STATE", "PID", "DEVICES", "MEMORY", "BUSY", "RESTARTS", "AGE")
    for name in ("PID", "MEMORY", "BUSY", "RESTARTS", "AGE"):
        _column(table, name).justify = "right"
    if width >= 120:
        table.add_column("CAUSE", overflow="ellipsis", no_wrap=True)
    for each in workers:
        cause = [_text(each.get("cause") or "")] if width >= 120 else []
        table.add_row(
            _text(each["id"]),
            _state(each["state"], activity=each.get("activity")),
            str(each["pid"]),
            _text(",".join(each.get("devices") or ()) or "-"),
            size(each["memory_bytes"]),
            str(each["in_flight"]),
            str(each["restarts"]),
            ago(each["started_at"]),
            *cause,
        )
    return _fitted(table, width, "CAUSE", "PID", "AGE", "RESTARTS", "DEVICES")


# ---- cells ---------------------------------------------------------------------------------------


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _fitted(table: "Table", width: int, *least: str) -> "Table":
    """Leave out columns until the table fits, the ``least`` important first."""
    for name in least:
        if _natural_width(table) <= width:
            break
        table = _without(table, name)
    return table


def _without(table: "Table", name: str) -> "Table":
    """Return the table without a column."""
    kept = [column for column in table.columns if column.header != name]
    found = _table()
    for column in kept:
        found.add_column(
            column.header, justify=column.justify, overflow=column.overflow, no_wrap=True
        )
    for row in zip(*(column.cells for column in kept), strict=True):
        found.add_row(*row)
    return found


def _natural_width(table: "Table") -> int:
    """Return the cells that a table takes if nothing is cut."""
    from rich.console import Console

    screen = Console(width=1000)
    return screen.measure(table).maximum


def _column(table: "Table", name: str) -> Any:
    return next(column for column in table.columns if column.header == name)


def _text(value: Any) -> "Text":
    from rich.text import Text

    return Text(clean(str(value)))


def _model_state(model: Mapping[str, Any]) -> "Text":
    if copying := model.get("copying"):
        return _state("loading", model.get("progress"), activity=f"copying to {copying['node']}")
    return _state(model["status"], model.get("progress"))


def _state(state: str, progress: float | None = None, *, activity: str | None = None) -> "Text":
    """Show a state, with how far a load is, or with what a worker does that may take minutes."""
    from rich.text import Text

    shown = f"{state} {progress:.0%}" if progress is not None else state
    shown = f"{shown}, {activity}" if activity else shown
    return Text(clean(shown), style=_COLOURS.get(state, "dim"))


def _replicas(model: Mapping[str, Any]) -> str:
    if model.get("replicas") is None:
        return "-"
    return f"{model.get('ready', 0)}/{model['replicas']}"


def _count(value: int | None) -> str:
    return str(value) if value else "-"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f} {unit}"
