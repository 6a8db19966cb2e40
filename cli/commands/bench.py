"""Implements ``bitinglip bench``: how fast a running server's model is under load."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import print_note, show_json, show_table, size

if TYPE_CHECKING:
    from cli.client import Client

_CONCURRENCY = [1, 4, 16]
_KINDS = ("text", "image", "speech", "embedding")
_BAR = 16  #: characters


def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model to test, as `models list` names it.")
    ],
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Requests at once; may be repeated (else 1, 4 and 16)."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Requests of each run (else 4, or 2 for each at once)."),
    ] = None,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words of each prompt.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each text.")] = 64,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Load-test a model of the running server: throughput, and percentiles of its times.

    One request goes first: no figure has the load of the model in it. All texts are of full length.
    """
    from cli.bench.measure import Load

    client = CliContext.of(home, config).need_server()
    kind = _kind(client.get(f"/api/v1/models/{model}"))
    load = Load(model, kind, prompt_words, max_tokens)
    rows = _rows(client, load, concurrency or _CONCURRENCY, requests)
    found: dict[str, Any] = {"model": model, "kind": kind, "runs": rows}
    if kind == "text":
        found["ceiling"] = _ceiling(client, model, rows)
    if as_json:
        show_json(found)
    else:
        _show(found)


def _kind(info: dict[str, Any]) -> str:
    """Return what a model makes. Raises Failure for a kind that is not measured."""
    kind: str = info["type"] if info["type"] in _KINDS else str(info.get("kind"))
    if kind not in _KINDS:
        raise Failure(f"{info['model_id']} cannot be load-tested: its kind is {kind}")
    return kind


def _rows(
    client: "Client", load: Any, concurrency: list[int], requests: int | None
) -> list[dict[str, Any]]:
    from cli.bench.measure import ask, run
    from cli.bench.report import row

    print_note(f"Loading {load.model}")
    if (error := ask(client, load).error) is not None:
        raise Failure(error)
    rows = []
    for number in concurrency:
        count = requests or max(4, 2 * number)
        print_note(f"{number} at once, {count} requests")
        rows.append(row(number, run(client, load, concurrency=number, requests=count)))
    return rows


def _ceiling(client: "Client", model: str, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the ceiling of one request at a time, and what share of it was reached."""
    from cli.bench.ceiling import bytes_per_second

    info = client.get(f"/api/v1/models/{model}")
    alone = next((each for each in rows if each["concurrency"] == 1), None)
    # What has no parameters computes nothing here: the fake engine, and other servers as models.
    if not client.is_here or not info["bytes"] or not info["parameters"] or alone is None:
        return None
    rate = bytes_per_second(info["device"] or "cpu")
    if rate is None:
        return None
    most = rate / info["bytes"]
    return {
        "memory_bytes_per_second": round(rate),
        "tokens_per_second": round(most, 2),
        "share": round(alone["tokens_per_second"] / most, 4),
    }


def _show(found: dict[str, Any]) -> None:
    from cli.bench.report import remark

    rows, text = found["runs"], found["kind"] == "text"
    unit = "tokens_per_second" if text else "requests_per_second"
    most = max(each[unit] for each in rows) or 1
    columns = ["AT-ONCE", "REQUESTS/S", *(["TOKENS/S"] if text else []), "SPEED"]
    times = ["FIRST", "NEXT"] if text else ["TIME"]
    columns += [f"{name}-P{percent}" for name in times for percent in (50, 95)]
    cells = [[*_cells(each, text), *_times(each, text)] for each in rows]
    for line, each in zip(cells, rows, strict=True):
        line.insert(3 if text else 2, "▇" * max(1, round(_BAR * each[unit] / most)))
    show_table(columns, cells, right=" ".join(name for name in columns if name != "SPEED"))
    ceiling = found.get("ceiling")
    if ceiling:
        rate = size(ceiling["memory_bytes_per_second"])
        print_note(
            f"Memory moves {rate}/s here, so one request at a time makes at most "
            f"{ceiling['tokens_per_second']:,.0f} tokens/s; {ceiling['share']:.0%} was reached."
        )
    if said := remark(rows, ceiling and ceiling["share"]):
        print_note(said)
    for each in rows:
        for error, count in each["errors"].items():
            print_note(f"{each['concurrency']} at once: {count} failed: {error}")


def _cells(each: dict[str, Any], text: bool) -> list[Any]:
    tokens = [f"{each['tokens_per_second']:,.1f}"] if text else []
    return [each["concurrency"], f"{each['requests_per_second']:,.2f}", *tokens]


def _times(each: dict[str, Any], text: bool) -> list[str]:
    of = [each["first_token_ms"], each["inter_token_ms"]] if text else [each["latency_ms"]]
    return [_ms(spread[name]) for spread in of for name in ("p50", "p95")]


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.2f} s"
