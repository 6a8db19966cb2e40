"""Lists the errors from the one table that turns them into responses."""

from bitinglip.errors import TABLE
from bitinglip.wire.errors import openai_code
from scripts.reference.page import table

HEAD = """\
# Errors

Every error is `{"error": {"code", "message", "type", "param", "details", "request_id",
"timestamp"}}` with one of these codes. Below `/v1` the code is the one of the third column, which
OpenAI's clients know; `/v1/messages` has Anthropic's form.

"""


def page() -> str:
    rows = []
    for error, answer in TABLE.items():
        text = (error.__doc__ or "").strip()
        rows.append((str(answer.status), f"`{answer.code}`", f"`{openai_code(answer.code)}`", text))
    return HEAD + table(("status", "code", "below `/v1`", "meaning"), sorted(set(rows)))
