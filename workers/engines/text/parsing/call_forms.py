"""Tells how each family writes a call, for requests in which the model has to call a tool."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentForm:
    """Holds the text around each argument of a call; ``{key}`` stands for the argument's name."""

    before: str
    after: str
    before_text: str | None = None  #: before a string, where that differs
    between: str = ""
    raw: bool = True  #: strings are written as they are, else as JSON
    mark: str = ""  #: quotes a string on both sides


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """Holds the text around calls and around their arguments; ``{name}`` stands for the tool's
    name."""

    head: str
    tail: str = ""
    begin: str = ""  #: before the first call
    between: str = ""
    end: str = ""  #: after the last call
    argument: ArgumentForm | None = None  #: None: the arguments are one JSON object
    one: bool = False  #: an answer holds at most one call


_NAMED = '{"name": "{name}", "arguments": '
_PYTHON = ArgumentForm(before="{key}=", after="", between=", ", raw=False)

FORMS = MappingProxyType(
    {
        "hermes": CallForm(head=f"<tool_call>\n{_NAMED}", tail="}\n</tool_call>", between="\n"),
        "qwen_xml": CallForm(
            head="<tool_call>\n<function={name}>\n",
            tail="</function>\n</tool_call>",
            between="\n",
            argument=ArgumentForm(before="<parameter={key}>\n", after="\n</parameter>\n"),
        ),
        "glm": CallForm(
            head="<tool_call>{name}\n",
            tail="</tool_call>",
            between="\n",
            argument=ArgumentForm(
                before="<arg_key>{key}</arg_key>\n<arg_value>", after="</arg_value>\n"
            ),
        ),
        "mistral": CallForm(begin="[TOOL_CALLS][", head=_NAMED, tail="}", between=", ", end="]"),
        "mistral_args": CallForm(head="[TOOL_CALLS]{name}[ARGS]"),
        "deepseek": CallForm(
            begin="<｜tool▁calls▁begin｜>",
            head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
            tail="\n```<｜tool▁call▁end｜>",
            between="\n",
            end="<｜tool▁calls▁end｜>",
        ),
        "deepseek_dsml": CallForm(
            begin="<｜DSML｜function_calls>\n",
            head='<｜DSML｜invoke name="{name}">\n',
            tail="</｜DSML｜invoke>\n",
            end="</｜DSML｜function_calls>",
            argument=ArgumentForm(
                before='<｜DSML｜parameter name="{key}" string="false">',
                before_text='<｜DSML｜parameter name="{key}" string="true">',
                after="</｜DSML｜parameter>\n",
            ),
        ),
        "gpt_oss": CallForm(
            head="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>", one=True
        ),
        "gemma": CallForm(
            head="<|tool_call>call:{name}{",
            tail="}<tool_call|>",
            argument=ArgumentForm(before="{key}:", after="", between=",", mark='<|"|>'),
        ),
        "function_gemma": CallForm(
            head="<start_function_call>call:{name}{",
            tail="}<end_function_call>",
            argument=ArgumentForm(before="{key}:", after="", between=",", mark="<escape>"),
        ),
        "kimi": CallForm(
            begin="<|tool_calls_section_begin|>",
            head="<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
            tail="<|tool_call_end|>",
            end="<|tool_calls_section_end|>",
            one=True,
        ),
        "cohere": CallForm(
            begin="<|START_ACTION|>[\n    ",
            head='{"tool_call_id": "0", "tool_name": "{name}", "parameters": ',
            tail="}",
            end="\n]<|END_ACTION|>",
            one=True,
        ),
        "minimax": CallForm(
            begin="<minimax:tool_call>\n",
            head='<invoke name="{name}">\n',
            tail="</invoke>\n",
            end="</minimax:tool_call>",
            argument=ArgumentForm(before='<parameter name="{key}">', after="</parameter>\n"),
        ),
        "lfm": CallForm(
            begin="<|tool_call_start|>[",
            head="{name}(",
            tail=")",
            between=", ",
            end="]<|tool_call_end|>",
            argument=_PYTHON,
        ),
        "granite": CallForm(begin="<|tool_call|>[", head=_NAMED, tail="}", between=", ", end="]"),
        "llama_python": CallForm(
            begin="[", head="{name}(", tail=")", between=", ", end="]", argument=_PYTHON
        ),
        "llama_json": CallForm(head='{"name": "{name}", "parameters": ', tail="}", one=True),
    }
)
