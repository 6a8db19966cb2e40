"""Runs ``bitinglip models``: lists, imports, pulls, loads and removes models of the store."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import offline
from cli.completion import models as model_names
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import (
    ago,
    amount,
    moment,
    print_done,
    print_note,
    show_json,
    show_list,
    show_pairs,
    show_table,
    size,
    waiting,
)

if TYPE_CHECKING:
    from cli.client import Client

PicklesOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickles", help="Where its weights are pickles, take the tensors out of them."
    ),
]

Priority = Literal["low", "normal", "high"]

app = typer.Typer(no_args_is_help=True, help="Download, import, look at and load models.")

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A model's name, as in `models list`.", autocompletion=model_names()
    ),
]


@app.command()
def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO[@REVISION]", help="A repository on the hub.")
    ],
    name: Annotated[
        str | None, typer.Option(help="The model's name here; the repository's by default.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Take these files only; may be repeated."),
    ] = None,
    allow_pickles: PicklesOption = False,
    priority: Annotated[
        Priority | None,
        typer.Option(help="Whose turn it is among the downloads of a running server; else normal."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be fetched, and whether it fits.")
    ] = False,
    token_stdin: Annotated[
        bool,
        typer.Option(
            "--token-stdin",
            help="Read the hub's token from standard input; this command pulls by itself then.",
        ),
    ] = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Download a model from the hub; run it again to go on where it stopped.

    A running server does it, and goes on without this command.
    """
    from cli.commands.downloads import pull_by_server
    from cli.commands.pull import PullArguments, plan_pull, pull_model
    from model_store.hub.tokens import read_token

    repo_id, _, revision = repo.partition("@")
    place = CliContext.of(home, config)
    asked = PullArguments(repo_id, revision or None, name, tuple(include or ()), allow_pickles)
    alone = dry_run or token_stdin
    if alone and os.environ.get("BITINGLIP_URL"):
        raise Failure(
            "--dry-run and --token-stdin work on this machine's home; unset BITINGLIP_URL. A "
            "server has its own token: HF_TOKEN, or hub.token_file in its settings"
        )
    if not alone and (server := place.server()):
        pull_by_server(server, asked, priority)
        return
    token = read_token(sys.stdin) if token_stdin else None
    if dry_run:
        plan_pull(place, asked, token)
    else:
        pull_model(place, asked, token)


@app.command()
def downloads(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """List the downloads of a running server, the newest first."""
    from cli.commands.downloads import list_downloads, show_downloads

    rows = list_downloads(CliContext.of(home, config).need_server())
    show_list(rows, show_downloads, as_json=as_json, empty="No downloads.")


@app.command()
def cancel(
    name: Annotated[str, typer.Argument(metavar="NAME|ID", help="A model, or a download's id.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove what has come, instead of keeping it.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Cancel a download of a running server."""
    from cli.commands.downloads import cancel_download

    cancel_download(CliContext.of(home, config).need_server(), name, purge=purge, as_json=as_json)


@app.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder in Hugging Face layout.")],
    name: Annotated[str, typer.Option(help="The model's name here.")],
    allow_pickles: PicklesOption = False,
    base: Annotated[
        str | None, typer.Option(help="Of an adapter: its base's name, if its files name another.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Take a local folder into the store: checked, and linked or copied."""
    place = CliContext.of(home, config)
    folder = path.expanduser().absolute()
    if not folder.is_dir():
        raise Failure(f"{folder} is not a folder")
    server = place.server()
    with waiting(f"importing {folder.name}"):
        if server:
            body = {"path": str(folder), "name": name, "allow_pickles": allow_pickles}
            body |= {"base": base} if base else {}
            found = server.post("/api/v1/models/import", body, patience=None)
        else:
            found = offline.import_model(
                place.home,
                folder,
                name,
                allow_pickles=allow_pickles or place.allows_pickles(name),
                base=base,
                confine=place.settings().workers.confine,
            )
    if as_json:
        show_json(found)
        return
    what = f"adapter of {found['base']}" if found.get("kind") == "adapter" else found["type"]
    print_note(f"Imported {found['model_id']}: {what}, {size(found['bytes'])}.")
    if why := found.get("cause"):
        print_note(why)


@app.command("list")
def list_models(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """List all models in the store; `models show` tells more of one, such as its voices."""
    place = CliContext.of(home, config)
    server = place.server()
    found = _listed(server) if server else _listed_here(place)
    rows = [{name: row[name] for name in row if name not in _LONG} for row in found]
    empty = "No models yet: `bitinglip models pull REPO`, or `bitinglip serve --demo`."
    show_list(rows, _show_models, as_json=as_json, empty=empty)


def _listed(server: "Client") -> list[dict[str, Any]]:
    """Return the server's models, and of each whether it fits; None where it is not known."""
    from cli.client import path_of

    rows = server.list("/api/v1/models")
    for number, row in enumerate(rows):
        row["fit"] = None
        if number < _MOST_FITS and row["status"] != "downloading":
            with suppress(Failure):  # a server of another version
                row["fit"] = server.get(path_of("models", row["model_id"], "fit")).get("verdict")
    return rows


def _listed_here(place: CliContext) -> list[dict[str, Any]]:
    """Return the models of the home, and of each whether it fits on this machine."""
    from cli.machine import machine

    if rows := offline.models(place.home):
        opened = offline.store(place.home)
        with machine(place) as fit:
            for row in rows:
                manifest = opened.get(row["model_id"])
                row["fit"] = None if manifest.kind == ADAPTER else fit(manifest).verdict
    return rows


def _show_models(rows: list[dict[str, Any]]) -> None:
    show_table(COLUMNS, [_row(row) for row in rows], right="SIZE PARAMETERS CONTEXT", below=BELOW)


@app.command()
def show(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one model: what it is, where it came from, what it can do."""
    from cli.client import path_of

    place = CliContext.of(home, config)
    server = place.server()
    found = server.get(path_of("models", name)) if server else offline.model(place.home, name)
    if as_json:
        show_json(found)
        return
    shown = {key: value for key, value in found.items() if key not in _NOT_SHOWN}
    voices = _voices(found.get("voices", ()))
    show_pairs({"name": found["model_id"], **shown, **_said(found), **voices})


@app.command()
def remove(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Delete a model from the store; one that is in use is refused."""
    from cli.client import path_of

    place = CliContext.of(home, config)
    with waiting(f"removing {name}"):
        if server := place.server():
            server.delete(path_of("models", name))
        else:
            offline.remove_model(place.home, name)
    print_done(f"Removed {name}.", {"model_id": name, "removed": True}, as_json=as_json)


@app.command()
def load(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Load a model now, and return when it is ready.

    The settings models.<name>.keep_alive and models.<name>.pin say how long it stays loaded.
    """
    from cli.client import path_of

    server = CliContext.of(home, config).need_server()
    with waiting(f"loading {name}"):
        found = server.post(path_of("models", name, "load"), patience=None)
    print_done(f"{found['model_id']} is {found['status']}.", found, as_json=as_json)


@app.command()
def fit(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Say whether a model fits, on which device, what is unloaded for it, and what would help.

    `models pull --dry-run` says whether a model fits that is not here yet.
    """
    from cli.commands.fit import fit_model

    fit_model(CliContext.of(home, config), name, as_json=as_json)


@app.command()
def unload(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Stop a model's worker and give its memory back."""
    from cli.client import path_of

    server = CliContext.of(home, config).need_server()
    with waiting(f"unloading {name}"):
        found = server.post(path_of("models", name, "unload"), patience=None)
    print_done(f"{name} is unloaded.", found, as_json=as_json)


COLUMNS = ("NAME", "TYPE", "ENGINE", "SIZE", "PARAMETERS", "CONTEXT", "USED", "FITS", "STATUS")
ADAPTER = "adapter"  #: the kind of one whose base is not here, so that it takes no memory
BELOW = "ENGINE PARAMETERS CONTEXT USED FITS"  #: their row, where the terminal is narrow
_LONG = ("supported_parameters", "voices")  #: nine tenths of a model's JSON
_MOST_FITS = 100  #: models that are asked about one by one
_FITS = {
    "loaded": "yes",
    "fits": "yes",
    "fits_after_eviction": "after eviction",
    "does_not_fit": "no",
}
_NOT_SHOWN = {"model_id", "supported_parameters", "bytes", "voices"}


def _row(model: dict[str, Any]) -> tuple[Any, ...]:
    return (
        model["model_id"],
        model["type"],
        model["engine"],
        _size(model),
        amount(model["parameters"]),
        model["max_context"],
        (used := model.get("last_used_at")) and f"{ago(used)} ago",
        _FITS.get(model.get("fit") or ""),
        _status(model),
    )


def _size(model: dict[str, Any]) -> str:
    """Return the size of a model's files; one that another server answers for has none here."""
    return size(None if model["engine"] == "upstream" else model["bytes"])


def _status(model: dict[str, Any]) -> str:
    done, pinned = model.get("progress"), ", pinned" if model.get("pinned") else ""
    part = f" {100 * done:.0f} %" if model["status"] == "downloading" and done else ""
    return f"{model['status']}{part}{pinned}"


def _said(model: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a model that a person reads in other words than a program."""
    loads = model.get("load_seconds") or {}
    needs = model.get("needs_by_dtype") or {}
    merged = model.get("merged")
    return {
        "size": _size(model),
        "parameters": amount(model["parameters"]) if model["parameters"] else None,
        "load_seconds": [f"{took:.1f} s from {source}" for source, took in loads.items()],
        "needs_by_dtype": {dtype: size(count) for dtype, count in needs.items()},
        "quantizations": [_quantized(each) for each in model.get("quantizations") or ()],
        "batching": _batching(model),
        "sequential": None,  # that line tells of it
        "merged": merged and f"into a copy of its base, in a worker of its own: {merged}",
        "pinned": "yes" if model.get("pinned") else "no",
        "last_used_at": (used := model.get("last_used_at")) and moment(used),
        "may set": list(model["supported_parameters"]),
    }


def _batching(model: dict[str, Any]) -> str | None:
    """Return how the requests of a text model are computed, and why; None until it is loaded."""
    if model["engine"] != "text" or model["status"] != "ready":
        return None
    if why := model.get("sequential"):
        return f"requests at once take turns, each with the library's own cache: {why}"
    return "continuous: requests at once share each step, in the paged cache"


def _quantized(option: dict[str, Any]) -> str:
    lacks = f": {option['lacks']}" if option["lacks"] else ""
    return f"{option['format']} ({size(option['needs_bytes'])}){lacks}"


def _voices(voices: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Put the voices of one language and gender in a line; leave out what is not known."""
    lines: dict[str, list[str]] = {}
    for voice in voices:
        known = [each for each in (voice["language"], voice["gender"]) if each]
        lines.setdefault(" ".join(["voices", *known]), []).append(voice["id"])
    return lines
