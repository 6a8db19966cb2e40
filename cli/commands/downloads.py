"""Shows and changes downloads of a running server: asked for, followed, listed, cancelled."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cli.errors import Failure
from cli.show.output import ago, print_done, print_note, show_table, size

if TYPE_CHECKING:
    from cli.client import Client, Event
    from cli.commands.pull import PullArguments, Transfer

_DOWNLOADS = "/api/v1/models/downloads"
#: what a download that runs does, by what was asked for
_STATES = {
    ("running", "pull"): "downloading",
    ("running", "update"): "updating",
    ("running", "repair"): "repairing",
}
COLUMNS = ("ID", "MODEL", "STATE", "DONE", "PRIORITY", "ASKED", "ERROR")
BELOW = "ERROR"  #: its row, where the terminal is narrow


def pull_by_server(server: "Client", asked: "PullArguments", priority: str | None) -> None:
    """Have the server pull, and show how far it is. It goes on without this command."""
    body = {
        "model_name": asked.repo,
        "revision": asked.revision,
        "name": asked.name,
        "include": list(asked.include),
        "allow_pickles": asked.allow_pickles,
    }
    if priority is not None:
        body["priority"] = priority
    download = server.post("/api/v1/models/download", body)
    print_note(f"The server at {server.url} pulls {download['repo']}")
    ended = follow(server, download)
    kind = server.get(f"/api/v1/models/{ended['model']}")["type"]
    print_note(f"Pulled {ended['model']}: {kind}, {size(ended['bytes_total'])}, verified.")


def follow(server: "Client", download: dict[str, Any]) -> dict[str, Any]:
    """Show a download until it has ended; return it. Raises Failure unless it is completed.

    To interrupt this command does not stop the download.
    """
    from cli.client import refusal
    from cli.commands.pull import transfer

    try:
        with (
            server.follow(f"{_DOWNLOADS}/{download['id']}/events") as events,
            transfer(download["model"], "waiting for the server") as bars,
        ):
            state, last = show_events(events, bars)
    except KeyboardInterrupt:
        print_note(
            "The server goes on with it. How far it is: `bitinglip models downloads`; to stop it: "
            f"`bitinglip models cancel {download['model']}`."
        )
        raise
    if state == "failed":
        raise refusal(last["error"])
    if state == "cancelled":
        raise Failure("the download was cancelled; pull again to go on where it stopped")
    return last


def show_events(events: Iterable["Event"], bars: "Transfer") -> "Event":
    """Return the event that ends the stream. Raises Failure if the server ends before."""
    planned, told = False, None
    for state, data in events:
        # A try between two waits for the same is no news.
        if (why := data.get("waits_for")) and why != told:
            told = why
            bars.clear()
            print_note(f"It waits for {why}")
        if data.get("bytes_total") and not planned:
            planned = True
            bars.clear()
            for note in data.get("notes", ()):
                print_note(note)
            sizes = {file["path"]: file["bytes_total"] for file in data["files"]}
            bars.plan(sizes, {file["path"]: file["bytes_done"] for file in data["files"]})
        elif planned:
            for file in data["files"]:
                bars.advance(file["path"], file["bytes_done"])
        if state != "progress":
            return state, data
    raise Failure(
        "the server has ended, or your key; the download goes on at the server's next start"
    )


def show_downloads(rows: list[dict[str, Any]]) -> None:
    show_table(COLUMNS, [_row(row) for row in rows], right="DONE", below=BELOW)


def _row(download: dict[str, Any]) -> tuple[Any, ...]:
    done, total, error = download["bytes_done"], download["bytes_total"], download["error"]
    return (
        download["id"],
        download["model"],
        _STATES.get((download["state"], download["task"]), download["state"]),
        f"{size(done)} / {size(total)}" if total else "-",
        download["priority"],
        f"{ago(download['created_at'])} ago",
        error["message"] if error else download.get("waits_for"),
    )


def list_downloads(server: "Client") -> list[dict[str, Any]]:
    return server.list(_DOWNLOADS)


def cancel_download(server: "Client", name: str, *, purge: bool, as_json: bool) -> None:
    """Cancel the download of this id, or the newest of the model of this name."""
    rows = list_downloads(server)
    found = next((row for row in rows if name in (row["id"], row["model"])), None)
    if found is None:
        raise Failure(f"there is no download of {name!r}; see `bitinglip models downloads`")
    if found["state"] == "completed":
        raise Failure(f"{found['model']} is here already; `bitinglip models remove` removes it")
    server.delete(f"{_DOWNLOADS}/{found['id']}" + ("?purge=true" if purge else ""))
    kept = "what had come is removed" if purge else "pull again to go on where it stopped"
    said = f"Cancelled the download of {found['model']}; {kept}."
    print_done(said, {"id": found["id"], "model": found["model"]}, as_json=as_json)
