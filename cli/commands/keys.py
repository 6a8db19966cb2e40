"""Implements ``bitinglip keys``: who may use the server."""

from typing import Annotated, Any

import typer

from cli import offline
from cli.completion import models, scopes
from cli.context import CliContext
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import (
    moment,
    print_done,
    print_note,
    show_json,
    show_list,
    show_pairs,
    show_table,
)

app = typer.Typer(no_args_is_help=True, help="Make, show, change, rotate and revoke API keys.")

ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="Model, or glob of models, that the key may use; may be repeated.",
        autocompletion=models(),
    ),
]
RangeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ip-range",
        help="Addresses that the key may be used from, as 10.0.0.0/8; may be repeated.",
    ),
]
QuotaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        metavar="NAME=AMOUNT",
        help="What it may use, as daily.tokens=100000 or monthly.gpu_seconds=36000; also of "
        "requests, megapixels and audio_seconds. May be repeated.",
    ),
]
GuardOption = Annotated[
    str | None,
    typer.Option(
        "--guard",
        metavar="report|redact|block",
        help="The least that is done about personal data, even if its tier asks for less.",
    ),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A key's id, as in `keys list`.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    tier: Annotated[
        str | None,
        typer.Option(help="Tier of the key: free, pro, enterprise or operator; free by default."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Scope of the key, of models:read, inference:text, inference:image, "
            "inference:audio, cluster:read, cluster:write and admin; may be repeated. By default "
            "all but the last two.",
            autocompletion=scopes,
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Expiry: 30d, 12h, or a time in ISO 8601; never by default.")
    ] = None,
    model: ModelOption = None,
    ip_range: RangeOption = None,
    quota: QuotaOption = None,
    guard: GuardOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a key. Its secret is shown now and never again."""
    place = CliContext.of(home, config)
    body = _body(name, tier, scope, expires, model, ip_range, quota, guard)
    server = place.server()
    made = server.post("/api/v1/keys", body) if server else offline.create_key(place, body)
    if as_json:
        show_json(made)
        return
    typer.echo(made["key"])
    print_note(f"{_described(made)} Keep it now; it is not shown again.")


def _body(
    name: str | None,
    tier: str | None,
    scope: list[str] | None,
    expires: str | None,
    model: list[str] | None,
    ip_range: list[str] | None,
    quota: list[str] | None,
    guard: str | None,
) -> dict[str, Any]:
    """Gather the fields that options gave."""
    asked: dict[str, Any] = {
        "name": name,
        "tier": tier,
        "scopes": scope or None,
        "expires": expires,
        "guard": guard,
    }
    asked |= {"models": model or None, "ip_ranges": ip_range or None, "quotas": _quotas(quota)}
    return {key: value for key, value in asked.items() if value is not None}


def _quotas(given: list[str] | None) -> dict[str, Any] | None:
    """Parse quotas; the server says which names and amounts there are."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, _, amount = text.partition("=")
        period, _, unit = name.rpartition(".")
        try:
            number = float(amount) if "." in amount or "e" in amount else int(amount)
        except ValueError:
            raise typer.BadParameter(f"--quota takes NAME=AMOUNT, not {text!r}") from None
        (found.setdefault(period, {}) if period else found)[unit] = number
    return found or None


def _described(key: dict[str, Any]) -> str:
    narrowed = f", for {', '.join(key['models'])}" if key["models"] else ""
    if key["ip_ranges"]:
        narrowed += f", from {', '.join(key['ip_ranges'])}"
    if quotas := _quota_list(key):
        narrowed += f", up to {', '.join(quotas)}"
    if key.get("guard"):
        narrowed += f", personal data: {key['guard']}"
    return (
        f"Key {key['id']} for {key['name']}: tier {key['tier']}, "
        f"{'until ' + moment(end) if (end := _end_of(key)) else 'no expiry'}, "
        f"may {', '.join(key['scopes'])}{narrowed}."
    )


def _quota_list(key: dict[str, Any]) -> list[str]:
    """Write a key's quotas as ``--quota`` takes them."""
    quotas: dict[str, dict[str, float]] = key.get("quotas") or {}
    return [f"{period}.{unit}={n:.15g}" for period in quotas for unit, n in quotas[period].items()]


@app.command("list")
def list_keys(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """List all keys, revoked ones too."""
    place = CliContext.of(home, config)
    server = place.server()
    if server:
        rows = server.list("/api/v1/keys")
    else:
        rows = offline.keys(place, place.settings().security.key_rotation)
    empty = "No keys yet. The first start makes the admin key; `keys create --name N` makes more."
    show_list(rows, _show_keys, as_json=as_json, empty=empty)


def _show_keys(rows: list[dict[str, Any]]) -> None:
    show_table(_COLUMNS, [_row(row) for row in rows], below="SCOPES")


@app.command()
def show(
    key_id: IdArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one key, without its secret."""
    from cli.client import path_of

    place = CliContext.of(home, config)
    server = place.server()
    if server:
        found = server.get(path_of("keys", key_id))
    else:
        found = offline.key(place, key_id, place.settings().security.key_rotation)
    if as_json:
        show_json(found)
        return
    times = {
        name: moment(found[name])
        for name in found
        if name.endswith(("_at", "_by", "_until")) and found[name]
    }
    show_pairs({**found, **times, "quotas": _quota_list(found), "state": _state(found)})


@app.command()
def patch(
    key_id: IdArgument,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    tier: Annotated[
        str | None, typer.Option(help="Tier of the key: free, pro, enterprise or operator.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Scope of the key, in place of its present ones; may be repeated.",
            autocompletion=scopes,
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Expiry: 30d, 12h, or a time in ISO 8601.")
    ] = None,
    model: ModelOption = None,
    ip_range: RangeOption = None,
    quota: QuotaOption = None,
    guard: GuardOption = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="Lift the expiry.")] = False,
    any_model: Annotated[bool, typer.Option("--any-model", help="Allow all models.")] = False,
    anywhere: Annotated[bool, typer.Option("--anywhere", help="Allow all addresses.")] = False,
    no_quotas: Annotated[
        bool, typer.Option("--no-quotas", help="Lift the key's quotas; its tier's stay.")
    ] = False,
    no_guard: Annotated[
        bool, typer.Option("--no-guard", help="Lift the key's guard; its tier's stays.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Change a key; what is not named stays. Requests meet the change at once."""
    from cli.client import path_of

    body = _body(name, tier, scope, expires, model, ip_range, quota, guard)
    lifted = {"expires": no_expiry, "models": any_model, "ip_ranges": anywhere, "quotas": no_quotas}
    lifted |= {"guard": no_guard}
    for field in [field for field, lift in lifted.items() if lift]:
        if field in body:
            raise typer.BadParameter(f"{field} cannot be set and lifted at once")
        body[field] = None
    if not body:
        raise typer.BadParameter("name what to change; see --help")
    place = CliContext.of(home, config)
    server = place.server()
    path = path_of("keys", key_id)
    changed = server.patch(path, body) if server else offline.change_key(place, key_id, body)
    if as_json:
        show_json(changed)
    else:
        print_note(_described(changed))


@app.command()
def rotate(
    key_id: IdArgument,
    grace: Annotated[
        str, typer.Option(help="Grace period of the old secret, as 24h; 0s ends it now.")
    ] = "24h",
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a key a new secret, which is shown now and never again."""
    from cli.client import path_of

    place = CliContext.of(home, config)
    if server := place.server():
        made = server.post(f"{path_of('keys', key_id)}/rotate", {"grace": grace})
    else:
        made = offline.rotate_key(place, key_id, grace)
    if as_json:
        show_json(made)
        return
    typer.echo(made["key"])
    print_note(
        f"{_described(made)} The old secret ends {moment(made['grace_until'])}. "
        "Keep the new one now; it is not shown again."
    )


@app.command()
def revoke(
    key_id: IdArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """End a key for good. Its record stays."""
    from cli.client import path_of

    place = CliContext.of(home, config)
    if server := place.server():
        server.delete(path_of("keys", key_id))
    else:
        offline.revoke_key(place, key_id)
    print_done(f"Revoked {key_id}.", {"id": key_id, "revoked": True}, as_json=as_json)


_COLUMNS = ("ID", "NAME", "TIER", "STATE", "SECRET", "EXPIRES", "LAST USED", "SCOPES")


def _row(key: dict[str, Any]) -> tuple[Any, ...]:
    return (
        key["id"],
        key["name"],
        key["tier"],
        _state(key),
        f"…{key['last_four']}",
        moment(_end_of(key)),
        moment(key["last_used_at"]),
        key["scopes"],
    )


def _end_of(key: dict[str, Any]) -> str | None:
    """Return when a key ends: by its expiry or, unless it is rotated, by its age."""
    from datetime import datetime

    ends = [end for end in (key["expires_at"], key.get("rotate_by")) if end is not None]
    return min(ends, key=datetime.fromisoformat, default=None)


def _state(key: dict[str, Any]) -> str:
    from datetime import UTC, datetime

    if key["revoked_at"]:
        return "revoked"
    expires = _end_of(key)
    over = expires is not None and datetime.fromisoformat(expires) <= datetime.now(UTC)
    return "expired" if over else "active"
