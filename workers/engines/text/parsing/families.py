"""Lists the formats: how families of models write reasoning and calls.

Each row is a template of the library's own kind with literal markers only: those are found in
linear time. The names of rows are what ``models.<name>.text.response_template`` takes.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from workers.engines.text.parsing import readers
from workers.engines.text.parsing.calls import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Describes a format of responses: its markers, and the reader of what is between those of
    calls."""

    name: str
    reasoning: tuple[tuple[str, ...], tuple[str, ...]] | None = None  #: openings, closings
    tools: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    resumed: str = ""  #: what follows reasoning before all else
    dropped: tuple[str, ...] = ()  #: markers around content and sections, which are left out
    read: Reader = readers.read_json
    #: expression for the beginning of a call without its marker, which some models leave out
    bare: str | None = None
    nine_characters: bool = False  #: ids of calls are nine letters or digits
    #: what makes a model's chat template one of this family: all strings of one of these tuples
    marks: tuple[tuple[str, ...], ...] = ()
    model_types: tuple[str, ...] = ()

    def template(self, *, reasoning: bool, tools: bool) -> dict[str, Any]:
        """Return the family's template in the library's form, with the fields that are wanted."""
        content: dict[str, Any] = {"content": "text", "repeats": True, "join": ""}
        if self.dropped:
            content["close"] = [*self.dropped]
        fields = {"content": content}
        if reasoning and self.reasoning:
            fields["reasoning_content"] = _field(*self.reasoning)
        if tools and self.tools:
            fields["tool_calls"] = _field(*self.tools, repeats=True)
        return {"start_anchor": [*ANCHORS], "fields": fields}


def _field(opens: tuple[str, ...], closes: tuple[str, ...], **more: Any) -> dict[str, Any]:
    field = {"open": [*opens], "content": "text", "content_args": {"strip": False}, **more}
    return {**field, "close": [*closes]} if closes else field


#: What chat templates write where an answer begins.
ANCHORS = (
    "<|im_start|>assistant\n",
    "<|im_assistant|>assistant<|im_middle|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|header_start|>assistant<|header_end|>\n\n",
    "<|start_of_role|>assistant<|end_of_role|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<｜Assistant｜>",
    "<|assistant|>",
    "<|start|>assistant",
    "<|turn>model\n",
    "<start_of_turn>model\n",
    "]~b]ai\n",
    "[/INST]",
    "[/TOOL_RESULTS]",
    "<｜tool▁outputs▁end｜>",
    "<tool_response|>",
)
_THINK = (("<think>",), ("</think>",))
_CALL = (("<tool_call>",), ("</tool_call>",))

_ROWS = (
    Family(
        name="qwen_xml",
        reasoning=_THINK,
        tools=_CALL,
        read=readers.read_functions,
        marks=(("<tool_call>", "<function="),),
        model_types=("qwen3_5", "qwen3_5_moe", "nemotron_h"),
    ),
    Family(
        name="glm",
        reasoning=_THINK,
        tools=_CALL,
        read=readers.read_glm,
        marks=(("<arg_key>",),),
        model_types=("glm4_moe",),
    ),
    Family(
        name="hermes",
        reasoning=_THINK,
        tools=_CALL,
        marks=(("<tool_call>",),),
        model_types=("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"),
    ),
    Family(
        name="mistral",
        reasoning=(("[THINK]", "<think>"), ("[/THINK]", "</think>")),
        tools=(("[TOOL_CALLS]",), ()),
        read=readers.read_mistral,
        nine_characters=True,
        marks=(("[TOOL_CALLS]",),),
    ),
    Family(
        name="deepseek_dsml",
        reasoning=_THINK,
        tools=(
            ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
            ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"),
        ),
        read=readers.read_invokes,
        marks=(("｜DSML｜",),),
    ),
    Family(
        name="deepseek",
        reasoning=_THINK,
        tools=(("<｜tool▁call▁begin｜>",), ("<｜tool▁call▁end｜>",)),
        dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        read=readers.read_deepseek,
        marks=(("<｜tool▁call▁begin｜>",), ("<｜tool▁calls▁begin｜>",)),
        model_types=("deepseek_v3",),
    ),
    Family(
        name="gpt_oss",
        reasoning=(
            ("<|channel|>analysis<|message|>",),
            ("<|end|>", "<|return|>", "<|call|>"),
        ),
        resumed="<|start|>assistant",
        tools=(
            (
                "<|channel|>commentary to=functions.",
                "<|channel|>analysis to=functions.",
                "<|start|>assistant to=functions.",
                " to=functions.",
            ),
            ("<|call|>", "<|end|>"),
        ),
        dropped=(
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
            "<|start|>assistant",
            "<|end|>",
            "<|return|>",
        ),
        read=readers.read_harmony,
        marks=(("<|channel|>", "<|message|>"),),
        model_types=("gpt_oss",),
    ),
    Family(
        name="gemma",
        reasoning=(("<|channel>thought\n",), ("<channel|>",)),
        tools=(("<|tool_call>",), ("<tool_call|>",)),
        read=readers.read_gemma,
        marks=(("<|tool_call>",),),
        model_types=("gemma4", "gemma4_text"),
    ),
    Family(
        name="function_gemma",
        tools=(("<start_function_call>",), ("<end_function_call>",)),
        read=readers.read_function_gemma,
        marks=(("<start_function_call>",),),
    ),
    Family(
        name="kimi",
        reasoning=_THINK,
        tools=(("<|tool_call_begin|>",), ("<|tool_call_end|>",)),
        dropped=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        read=readers.read_kimi,
        marks=(("<|tool_call_begin|>",),),
        model_types=("kimi_k2",),
    ),
    Family(
        name="cohere",
        reasoning=(("<|START_THINKING|>",), ("<|END_THINKING|>",)),
        tools=(("<|START_ACTION|>",), ("<|END_ACTION|>",)),
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        marks=(("<|START_ACTION|>",),),
        model_types=("cohere2",),
    ),
    Family(
        name="minimax",
        reasoning=_THINK,
        tools=(("<minimax:tool_call>",), ("</minimax:tool_call>",)),
        read=readers.read_invokes,
        marks=(("<minimax:tool_call>",),),
        model_types=("minimax_m2",),
    ),
    Family(
        name="lfm",
        reasoning=_THINK,
        tools=(("<|tool_call_start|>",), ("<|tool_call_end|>",)),
        read=readers.read_python,
        marks=(("<|tool_call_start|>",),),
        model_types=("lfm2",),
    ),
    Family(
        name="granite",
        reasoning=_THINK,
        tools=(("<|tool_call|>",), ("<|/tool_call|>",)),
        marks=(("<|tool_call|>",),),
        model_types=("granite", "phi3"),
    ),
    Family(
        name="llama_python",
        tools=(("<|python_start|>",), ("<|python_end|>",)),
        read=readers.read_python,
        bare=r"\s*\[\s*[A-Za-z_][\w.]*\(",
        marks=(("[func_name1(",), ("<|python_start|>",)),
        model_types=("llama4", "llama4_text"),
    ),
    Family(
        name="llama_json",
        tools=(("<|python_tag|>",), ()),
        read=readers.read_json_sequence,
        bare=r'\s*\{\s*"(?:name|type|function|parameters|arguments)"\s*:',
        marks=(("<|python_tag|>",), ("<|start_header_id|>", '"parameters"')),
        model_types=("llama",),
    ),
    Family(name="think", reasoning=_THINK, marks=(("<think>",),)),
)
FAMILIES = MappingProxyType({row.name: row for row in _ROWS})
