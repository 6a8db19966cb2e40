"""Answers as models of each family write them, and what they mean."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from workers.protocol import Tool

WEATHER = Tool(
    name="get_weather",
    description="Tells the weather.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "wide": {"type": "boolean"},
        },
        "required": ["city"],
    },
)
WRITE = Tool(
    name="write_file",
    parameters={"type": "object", "properties": {"text": {"type": "string"}}},
)
TOOLS = (WEATHER, WRITE)

Calls = Sequence[tuple[str, dict[str, Any]]]
PARIS: Calls = [("get_weather", {"city": "Paris", "days": 3, "wide": True})]
BOTH: Calls = [*PARIS, ("write_file", {"text": 'a "b"\n<c> é😀'})]


class Sample(NamedTuple):
    family: str
    answer: str
    content: str = ""
    reasoning: str = ""
    calls: Calls = ()
    begun: str = ""  #: what the prompt has written of the answer


_JSON_1 = '{"city": "Paris", "days": 3, "wide": true}'
_JSON_2 = '{"text": "a \\"b\\"\\n<c> é😀"}'
_RAW_2 = 'a "b"\n<c> é😀'

SAMPLES = [
    Sample(
        "hermes",
        "<think>\nWhere is it?\n\nIn France.\n</think>\n\nLet me look.\n\n<tool_call>\n"
        f'{{"name": "get_weather", "arguments": {_JSON_1}}}\n</tool_call>\n<tool_call>\n'
        f'{{"name": "write_file", "arguments": {_JSON_2}}}\n</tool_call>',
        "Let me look.",
        "Where is it?\n\nIn France.",
        BOTH,
    ),
    Sample("hermes", "Thinking.\n</think>\n\nHi.\n", "Hi.\n", "Thinking.", begun="<think>\n"),
    Sample("hermes", "Hi < there <tool", "Hi < there <tool", begun="<think>\n\n</think>\n\n"),
    Sample("hermes", "\n A line.\n\nAnother. ", "\n A line.\n\nAnother. "),
    Sample(
        "qwen_xml",
        "I write.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=wide>\ntrue\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=write_file>\n<parameter=text>\n"
        f"{_RAW_2}\n</parameter>\n</function>\n</tool_call>",
        "I write.",
        calls=BOTH,
    ),
    Sample(
        "glm",
        "<think>Hm.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
        "<arg_key>wide</arg_key>\n<arg_value>true</arg_value>\n</tool_call>\n"
        f"<tool_call>write_file\n<arg_key>text</arg_key>\n<arg_value>{_RAW_2}</arg_value>\n"
        "</tool_call>",
        reasoning="Hm.",
        calls=BOTH,
    ),
    Sample(
        "mistral",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {_JSON_1}}}, '
        f'{{"name": "write_file", "arguments": {_JSON_2}}}]',
        calls=BOTH,
    ),
    Sample(
        "mistral",
        "[THINK]Hm.[/THINK]I look.[TOOL_CALLS]get_weather[CALL_ID]abcdef123[ARGS]"
        f"{_JSON_1}[TOOL_CALLS]write_file[ARGS]{_JSON_2}",
        "I look.",
        "Hm.",
        BOTH,
    ),
    Sample(
        "deepseek",
        "Hm.</think>Look:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{_JSON_1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        f"write_file\n```json\n{_JSON_2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Look:",
        "Hm.",
        BOTH,
        begun="<think>\n",
    ),
    Sample(
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_JSON_1}"
        f"<｜tool▁call▁end｜><｜tool▁call▁begin｜>write_file<｜tool▁sep｜>{_JSON_2}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        calls=BOTH,
        begun="</think>",
    ),
    Sample(
        "deepseek_dsml",
        'Hm.</think>Yes.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="wide" string="false">true</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="write_file">\n'
        f'<｜DSML｜parameter name="text" string="true">{_RAW_2}</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "Yes.",
        "Hm.",
        BOTH,
        begun="<think>",
    ),
    Sample(
        "gpt_oss",
        "<|channel|>analysis<|message|>I must look.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{_JSON_1}<|call|>",
        reasoning="I must look.",
        calls=PARIS,
    ),
    Sample(
        "gpt_oss",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{_JSON_1}<|call|>"
        "<|start|>assistant to=functions.write_file<|channel|>commentary json<|message|>"
        f"{_JSON_2}<|call|>",
        calls=BOTH,
    ),
    Sample(
        "gpt_oss",
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>"
        "It is **4**.\n",
        "It is **4**.\n",
        "Easy.",
    ),
    Sample(
        "gemma",
        "<|channel>thought\nHm.\n<channel|>I look.<|tool_call>call:get_weather{city:"
        '<|"|>Paris<|"|>,days:3,wide:true}<tool_call|><|tool_call>call:write_file{text:'
        f'<|"|>{_RAW_2}<|"|>}}<tool_call|>',
        "I look.",
        "Hm.",
        BOTH,
    ),
    Sample(
        "function_gemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3,wide:true}"
        "<end_function_call>",
        calls=PARIS,
    ),
    Sample(
        "kimi",
        "I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        f"<|tool_call_argument_begin|>{_JSON_1}<|tool_call_end|><|tool_call_begin|>"
        f"functions.write_file:1<|tool_call_argument_begin|>{_JSON_2}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        "I look.",
        calls=BOTH,
    ),
    Sample(
        "cohere",
        "<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n"
        f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {_JSON_1}}},\n'
        f'    {{"tool_call_id": "1", "tool_name": "write_file", "parameters": {_JSON_2}}}\n]'
        "<|END_ACTION|>",
        reasoning="I look.",
        calls=BOTH,
    ),
    Sample("cohere", "<|START_RESPONSE|>Hello.<|END_RESPONSE|>", "Hello."),
    Sample(
        "minimax",
        'Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n'
        '<parameter name="city">Paris</parameter>\n<parameter name="days">3</parameter>\n'
        '<parameter name="wide">true</parameter>\n</invoke>\n</minimax:tool_call>',
        reasoning="Hm.",
        calls=PARIS,
        begun="<think>\n",
    ),
    Sample(
        "lfm",
        'On it. <|tool_call_start|>[get_weather(city="Paris", days=3, wide=True), '
        "write_file(text='a \"b\"\\n<c> é😀')]<|tool_call_end|>",
        "On it.",
        calls=BOTH,
    ),
    Sample(
        "granite",
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {_JSON_1}}}]<|/tool_call|>',
        calls=PARIS,
    ),
    Sample(
        "llama_python",
        '[get_weather(city="Paris", days=3, wide=true), write_file(text=\'a "b"\\n<c> é😀\')]',
        calls=BOTH,
    ),
    Sample("llama_python", "[1] is a note, [a list] is none.", "[1] is a note, [a list] is none."),
    Sample("llama_json", f'{{"name": "get_weather", "parameters": {_JSON_1}}}', calls=PARIS),
    Sample(
        "llama_json",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {_JSON_1}}}; '
        f'{{"type": "function", "name": "write_file", "parameters": {_JSON_2}}}',
        calls=BOTH,
    ),
    Sample("llama_json", '{"answer": 4}', '{"answer": 4}'),
    Sample("llama_json", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}'),
    Sample("think", "<think>Hm.</think>Yes.", "Yes.", "Hm."),
]
