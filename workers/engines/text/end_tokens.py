"""Finds the tokens that end an answer: all that the model's files name, in any place."""

from workers.engines.base import Refused
from workers.engines.text.chat_templates import ChatTemplates
from workers.engines.text.control_tokens import ControlTokens
from workers.engines.text.templates import PromptEnd
from workers.protocol import ChatMessage

_SAID = "probe answer"
_TALK = (ChatMessage("user", "probe question"), ChatMessage("assistant", _SAID))
_MOST = 100_000  #: characters of a conversation that tries a template


def turn_ends(templates: ChatTemplates, control: ControlTokens) -> frozenset[int]:
    """Return the token by which the default template ends an assistant's turn, if there is one.

    Files of chat models often name only the token that ends a text. Without this one a model would
    end its turn and write the next one, too.
    """
    template = templates.default
    if template is None:
        return frozenset()
    try:
        rendered = template.render(_TALK, _MOST, end=PromptEnd(header=False))
    except Refused:
        return frozenset()
    _, found, after = rendered.rpartition(_SAID)
    token = control.id_at_start_of(after.lstrip()) if found else None
    return frozenset() if token is None else frozenset({token})
