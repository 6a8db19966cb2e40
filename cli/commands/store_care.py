"""Runs the commands of ``bitinglip models`` that care for the store."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import offline
from cli.commands.models import NameArgument, Priority, app
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import print_done, print_note, show_json, show_table, size, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.client import Client
    from model_store.hub.pull import PullRequest
    from model_store.manifest import Manifest
    from model_store.store import ModelStore

PriorityOption = Annotated[
    Priority | None,
    typer.Option(help="Whose turn it is among the downloads of a running server; else normal."),
]


@app.command()
def update(
    name: NameArgument,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit; the newest of main by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    priority: PriorityOption = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Bring a model up to date, and say which of its files have changed."""
    place = CliContext.of(home, config)
    if dry_run:
        _show_changes(place, name, revision)
        return
    if server := place.server():
        body = {"revision": revision, **({"priority": priority} if priority else {})}
        changes = _by_server(server, name, "update", body)
    else:
        changes = _update(place, name, revision)
    for what, paths in changes.items():
        typer.echo(f"{what}: {', '.join(paths)}")
    print_note(f"{name} has changed." if changes else f"{name} is up to date.")


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A model's name, as in `models list`; or give --all."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Verify all models of the store.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch the files that differ, and no others.")
    ] = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Read every file of a model and compare it with what was downloaded."""
    if every == (name is not None):
        raise typer.BadParameter("give a model's name, or --all")
    place = CliContext.of(home, config)
    # Reading needs no server, and shows how far it is; a repair changes what a server may use.
    elsewhere = bool(os.environ.get("BITINGLIP_URL"))
    server = place.server() if repair or elsewhere else None
    names = [name] if name else _names(place, server)
    damaged = {}
    for each in names:
        paths = _verify(place, server if elsewhere else None, each)
        if paths and not (repair and _repair(place, server, each)):
            damaged[each] = paths
    if damaged:
        told = "; ".join(f"{each} is damaged: {_few(paths)}" for each, paths in damaged.items())
        raise Failure(
            f"{told}. --repair fetches what differs of a model that came from the hub; remove one "
            "from elsewhere, and add it again"
        )


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed; the default.")
    ] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option(help="What may stay, in bytes; by default store.max_bytes of the settings."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove left-over files, old downloads and, beyond the store's limit, the least used models.

    Models that are pinned or in use stay. Without store.max_bytes or --max-bytes all models stay.
    """
    if yes and dry_run:
        raise typer.BadParameter("--yes removes, --dry-run does not; give one")
    place = CliContext.of(home, config)
    with waiting("looking through the store"):
        if server := place.server():
            body = {"dry_run": not yes, "max_bytes": max_bytes}
            rows = server.post("/api/v1/models/gc", body, patience=None)["data"]
        else:
            rows = _clean_up(place, max_bytes, do=yes)
    if as_json:
        show_json(rows)
        return
    if rows:
        table = [(row["kind"], row["name"], size(row["bytes"]), row["why"]) for row in rows]
        show_table(("WHAT", "NAME", "BYTES", "WHY"), table, right="BYTES", below="WHY")
    freed = size(sum(row["bytes"] for row in rows))
    if not rows:
        print_note("There is nothing to remove.")
    else:
        print_note(f"Freed {freed}." if yes else f"--yes removes this and frees {freed}.")


@app.command()
def export(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    links: Annotated[
        bool, typer.Option("--links", help="Link the files where possible; never change them then.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a folder of a model's files that other libraries load."""
    from cli.commands.pull import transfer

    place = CliContext.of(home, config)
    offline.manifest(place.home, name)
    from model_store.export import export as export_model

    target = folder.expanduser().absolute()
    with transfer(f"Copying {name}") as progress:
        count = export_model(offline.store(place.home), name, target, progress, links=links)
    facts = {"model_id": name, "folder": str(target), "bytes": count}
    print_done(f"{target} holds {name}: {size(count)}.", facts, as_json=as_json)


@app.command()
def pin(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Keep a model: no clean-up removes it."""
    _change(CliContext.of(home, config), name, pinned=True)
    print_done(f"{name} is pinned.", {"model_id": name, "pinned": True}, as_json=as_json)


@app.command()
def unpin(
    name: NameArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Let clean-ups remove a model again."""
    _change(CliContext.of(home, config), name, pinned=False)
    facts = {"model_id": name, "pinned": False}
    print_done(f"{name} is not pinned.", facts, as_json=as_json)


@app.command()
def note(
    name: NameArgument,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="What to remember; an empty text removes the note."),
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Write a note on a model; `models show` shows it."""
    _change(CliContext.of(home, config), name, notes=text)
    said = f"{name} has the note." if text else f"{name} has no note."
    print_done(said, {"model_id": name, "notes": text}, as_json=as_json)


def _change(place: CliContext, name: str, **change: Any) -> None:
    from cli.client import path_of

    if server := place.server():
        server.patch(path_of("models", name), change)
        return
    offline.manifest(place.home, name)
    offline.store(place.home).set_care(name, **change)
    offline.enter(place.home, "model.change", name, after=change)


def _names(place: CliContext, server: "Client | None") -> list[str]:
    rows = server.list("/api/v1/models") if server else offline.models(place.home)
    return [row["model_id"] for row in rows if row["status"] != "downloading"]


def _repair(place: CliContext, server: "Client | None", name: str) -> bool:
    """Fetch what differs in a model; return False for one that did not come from the hub."""
    from cli.client import path_of
    from model_store.manifest import HUB

    if server:
        source = server.get(path_of("models", name))["source"]
    else:
        source = offline.manifest(place.home, name).source
    if not source.startswith(HUB):
        return False
    if server:
        changes = _by_server(server, name, "verify", {"repair": True})
    else:
        changes = _repair_here(place, name)
    fetched = ", ".join(changes.get("repaired", ()))
    print_note(f"{name} is whole again: {fetched}." if fetched else f"{name} is whole.")
    return True


def _verify(place: CliContext, server: "Client | None", name: str) -> list[str]:
    """Say what differs in a model; return the paths."""
    found = _differences(place, server, name)
    for each in found:
        shared = f"; also a file of {', '.join(each['shared_with'])}" if each["shared_with"] else ""
        typer.echo(f"{name}: {each['path']}: {_WHAT[each['what']]}{shared}")
    if not found:
        print_note(f"{name} is whole.")
    return [each["path"] for each in found]


def _few(paths: list[str]) -> str:
    return f"{len(paths)} of its files" if len(paths) > 5 else ", ".join(paths)


_WHAT = {
    "missing": "is missing",
    "new": "does not belong to it",
    "unreadable": "cannot be read",
    "size": "has another length",
    "content": "has other contents than it had",
}


def _differences(place: CliContext, server: "Client | None", name: str) -> list[dict[str, Any]]:
    from cli.client import path_of

    if server is not None:
        with waiting(f"the server reads {name}"):
            found = server.post(path_of("models", name, "verify"), patience=None)
        return list(found["differences"])
    from cli.commands.pull import transfer
    from model_store.verification import differences

    offline.manifest(place.home, name)
    with transfer(f"Reading {name}") as progress:
        told = differences(offline.store(place.home), [name], progress)[name]
    return [
        {"path": each.path, "what": each.what, "shared_with": each.shared_with} for each in told
    ]


def _by_server(server: "Client", name: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
    """Have the server download what changes a model; return the changes."""
    from cli.client import path_of
    from cli.commands.downloads import follow

    download = server.post(path_of("models", name, what), body)
    changes: dict[str, Any] = follow(server, download)["changes"]
    return changes


def _show_changes(place: CliContext, name: str, revision: str | None) -> None:
    from model_store.hub.pull import changes

    request = _request(place, offline.manifest(place.home, name), revision)
    with waiting(f"asking the hub for {name}"):
        found = changes(offline.store(place.home), request)
    for what, paths in found.files.items():
        typer.echo(f"{what}: {', '.join(paths)}")
    if found:
        print_note(f"{name} would change; {size(found.missing_bytes)} are to be fetched.")
    else:
        print_note(f"{name} is up to date.")


def _update(place: CliContext, name: str, revision: str | None) -> dict[str, list[str]]:
    from cli.commands.pull import transfer
    from model_store.hub.pull import update as update_model

    request = _request(place, offline.manifest(place.home, name), revision)
    store = offline.store(place.home, confine=place.settings().workers.confine)
    with transfer(name, f"asking the hub for {name}") as progress:
        change = update_model(store, request, progress)
    if change:
        after = offline.model_facts(store.get(name))
        offline.enter(place.home, "model.update", name, after=after)
    return change.files


def _repair_here(place: CliContext, name: str) -> dict[str, list[str]]:
    from cli.commands.pull import transfer
    from model_store.repair import repair

    offline.manifest(place.home, name)
    with transfer(f"Reading {name}") as progress:
        found = repair(
            offline.store(place.home),
            name,
            lambda into, old, paths: _fetch(place, into, old, paths),
            progress,
        )
    if found:
        offline.enter(place.home, "model.repair", name)
    return {"repaired": [each.path for each in found]}


def _fetch(
    place: CliContext, store: "ModelStore", old: "Manifest", paths: "Sequence[str]"
) -> "Manifest":
    """Pull what replaces a model, with bars."""
    from cli.commands.pull import transfer
    from model_store.hub.pull import pull

    with transfer(old.name, f"asking the hub for {old.name}") as progress:
        return pull(store, _request(place, old, old.revision, paths), progress)


def _request(
    place: CliContext, old: "Manifest", revision: str | None, include: "Sequence[str]" = ()
) -> "PullRequest":
    """Return what is asked of the hub for a model that is here. Raises BadFiles."""
    from cli.commands.pull import hub_options
    from model_store.hub.pull import request_again

    return request_again(
        old,
        hub_options(place),
        revision=revision,
        include=include,
        allow_pickles=place.allows_pickles(old.name),
    )


def _clean_up(place: CliContext, max_bytes: int | None, *, do: bool) -> list[dict[str, Any]]:
    from bitinglip.home import HomeLock
    from bitinglip.wire.admin.store_care import removal_info

    if not place.home.models.is_dir():
        return []
    settings = place.settings()
    most = settings.store.max_bytes if max_bytes is None else max_bytes
    kept = settings.store.partials_kept
    with HomeLock(place.home):
        found = offline.store(place.home).gc(do=do, partials_kept=kept, max_bytes=most)
        if do and found:
            gone = [each.name for each in found if each.kind == "model"]
            freed = sum(each.bytes for each in found)
            offline.enter(
                place.home, "store.clean", "store", after={"bytes": freed, "models": gone}
            )
    return [dict(removal_info(each)) for each in found]
