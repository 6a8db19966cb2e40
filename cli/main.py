"""Assembles the ``bitinglip`` command.

Nothing of the product is imported before a command runs, so that help and mistakes are answered
at once.
"""

from typing import Annotated

import typer

from cli.commands import (
    audit,
    backup,
    bench,
    chat,
    config,
    db,
    doctor,
    generate,
    keys,
    models,
    serve,
    status,
    store_care,  # noqa: F401  adds commands to those of models
    top,
    transcribe,
    usage,
    workers,
)
from cli.errors import Commands
from cli.examples import add_examples
from cli.show.output import survive_any_text

app = typer.Typer(
    name="bitinglip",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve AI models from your own machine: a private inference API behind one command.",
    epilog="New here? `bitinglip serve`, then `bitinglip chat demo-text` in another terminal.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from bitinglip import __version__

        typer.echo(f"bitinglip {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    survive_any_text()


app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.add_typer(generate.app, name="generate")
app.command("transcribe")(transcribe.transcribe)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.command("status")(status.status)
app.command("top")(top.top)
app.add_typer(workers.app, name="workers")
app.add_typer(audit.app, name="audit")
app.add_typer(config.app, name="config")
app.command("usage")(usage.usage)
app.command("bench")(bench.bench)
app.command("backup")(backup.backup)
app.add_typer(db.app, name="db")
app.command("doctor")(doctor.doctor)
add_examples(app)
