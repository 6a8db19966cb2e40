"""Tells the audit log how a download has ended, under the key that asked for it."""

from bitinglip.audit.entry import OK, Action, Actor, Entry
from bitinglip.downloads.download import Download

_ACTIONS = {
    "pull": Action.MODEL_PULL,
    "update": Action.MODEL_UPDATE,
    "repair": Action.MODEL_REPAIR,
}


def end_entry(download: Download) -> Entry | None:
    """Return the entry; None for a download that was cancelled, which the route enters."""
    if download.state == "cancelled":
        return None
    wanted, error = download.wanted, download.error
    after = {
        "repo": wanted.repo,
        "revision": download.commit or wanted.revision,
        "bytes": download.bytes_total,
        "kind": download.kind,
    }
    actor = Actor(download.requester.key_id, download.requester.name)
    outcome = OK if error is None else error.code
    return Entry(_ACTIONS[wanted.task], actor, wanted.name, outcome, after=after)
