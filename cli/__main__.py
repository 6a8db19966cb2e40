"""``python -m cli``: the same as the ``bitinglip`` command."""

from cli.main import app

# The guard matters: spawned workers import this module again under another name.
if __name__ == "__main__":
    app(prog_name="bitinglip")
