"""Holds the examples that the help of each command ends with."""

from typing import Any

import typer

#: by command; a test holds each against the commands and their options
EXAMPLES: dict[str, tuple[str, ...]] = {
    "serve": (
        "bitinglip serve",
        "bitinglip serve --demo --port 9000 --set logging.format=json",
    ),
    "chat": (
        "bitinglip chat demo-text",
        "bitinglip chat qwen --system 'Answer in one sentence.' --temperature 0",
    ),
    "generate text": (
        "bitinglip generate text qwen 'Once upon a time' --max-tokens 100",
        "git diff | bitinglip generate text qwen - -o message.txt",
    ),
    "generate image": (
        "bitinglip generate image demo-image 'a red fox' --width 256 --height 256 -o fox.png",
    ),
    "generate speech": (
        "bitinglip generate speech demo-speech 'Hello there.' -o hello.wav",
        "fortune | bitinglip generate speech demo-speech - -o fortune.mp3",
    ),
    "transcribe": (
        "bitinglip transcribe meeting.m4a",
        "bitinglip transcribe film.mp4 --translate -o film.srt",
    ),
    "models pull": (
        "bitinglip models pull Qwen/Qwen3-0.6B --name qwen",
        "bitinglip models pull suno/bark-small --name bark --allow-pickles --dry-run",
    ),
    "models import": ("bitinglip models import ./my-model --name mine",),
    "models list": ("bitinglip models list", "bitinglip models list --json | jq '.[].model_id'"),
    "models show": ("bitinglip models show qwen",),
    "models remove": ("bitinglip models remove qwen",),
    "models verify": ("bitinglip models verify qwen --repair",),
    "models load": ("bitinglip models load qwen",),
    "models unload": ("bitinglip models unload qwen",),
    "models fit": ("bitinglip models fit qwen",),
    "models update": ("bitinglip models update qwen",),
    "models export": ("bitinglip models export qwen ./qwen",),
    "models gc": ("bitinglip models gc",),
    "models downloads": ("bitinglip models downloads",),
    "models cancel": ("bitinglip models cancel qwen",),
    "models pin": ("bitinglip models pin qwen",),
    "models unpin": ("bitinglip models unpin qwen",),
    "models note": ("bitinglip models note qwen 'for the chat bot'",),
    "keys create": (
        "bitinglip keys create --name laptop --scope inference:text --scope models:read",
        "bitinglip keys create --name bot --tier pro --expires 30d --model 'org/*'",
    ),
    "keys list": ("bitinglip keys list",),
    "keys show": ("bitinglip keys show ID",),
    "keys patch": ("bitinglip keys patch ID --tier pro",),
    "keys rotate": ("bitinglip keys rotate ID --grace 24h",),
    "keys revoke": ("bitinglip keys revoke ID",),
    "workers list": ("bitinglip workers list",),
    "workers show": ("bitinglip workers show qwen/0",),
    "workers restart": ("bitinglip workers restart qwen/0",),
    "workers drain": ("bitinglip workers drain qwen/0",),
    "workers stop": ("bitinglip workers stop qwen/0",),
    "status": ("bitinglip status", "bitinglip status --json | jq .queued"),
    "top": ("bitinglip top", "bitinglip top --once"),
    "usage": (
        "bitinglip usage --by month,key",
        "bitinglip usage --from 2026-11-01 --csv > november.csv",
    ),
    "audit list": ("bitinglip audit list --action key --from 2026-11-01",),
    "audit verify": ("bitinglip audit verify",),
    "bench": ("bitinglip bench qwen --concurrency 1 --concurrency 8",),
    "backup": ("bitinglip backup ~/bitinglip-backup.db",),
    "db backup": ("bitinglip db backup ~/bitinglip-backup.db",),
    "db migrate": ("bitinglip db migrate",),
    "db copy": ("bitinglip db copy postgresql+psycopg://bitinglip@localhost/bitinglip",),
    "config check": ("bitinglip config check --set server.port=9000",),
    "config show": ("bitinglip config show --json",),
    "doctor": ("bitinglip doctor", "sudo bitinglip doctor --as-service"),
}


def add_examples(app: typer.Typer, path: str = "") -> None:
    """Let the help of each command end with its examples."""
    for info in app.registered_commands:
        name = info.name or getattr(info.callback, "__name__", "")
        if examples := EXAMPLES.get(f"{path}{name}".strip()):
            info.epilog = _text(examples)
    for group in app.registered_groups:
        below: Any = group.typer_instance
        add_examples(below, f"{path}{group.name} ")


def _text(examples: tuple[str, ...]) -> str:
    """Return a paragraph for each: the help joins the lines of one."""
    return "\n\n".join(["Examples:", *(f"  {each}" for each in examples)])
