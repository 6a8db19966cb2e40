"""Lists the parts of the check in order of value: the first ones survive a cut-off."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Describes a question that a process of its own answers."""

    name: str
    function: str  #: "module:function", called with a Recorder
    limit: float  #: seconds after which the process is killed
    question: str


PARTS = (
    Part(
        "ceilings",
        "benchmarks.gpu.ceilings:measure",
        40,
        "What are the card and its software, and what can the card do at most?",
    ),
    Part(
        "imports",
        "benchmarks.gpu.imports:check",
        40,
        "Does a worker that has imported its libraries still choose its card freely?",
    ),
    Part(
        "tests",
        "benchmarks.gpu.correctness:run_tests",
        110,
        "Do all engines give the libraries' own output on the card?",
    ),
    Part(
        "text",
        "benchmarks.gpu.text:measure",
        120,
        "How fast is the text engine, by rows and prompt lengths, and where does a step's time go?",
    ),
    Part(
        "text steps",
        "benchmarks.gpu.text_steps:measure",
        120,
        "What do overlapped steps, graphs and the kernel gain, and are the answers the same?",
    ),
    Part(
        "server",
        "benchmarks.gpu.server:measure",
        170,
        "Do several models share one card, and is its memory back at the end?",
    ),
    Part(
        "speech",
        "benchmarks.gpu.speech:measure",
        60,
        "How many seconds of sound does Bark make a second, beside the library?",
    ),
    Part(
        "images",
        "benchmarks.gpu.images:measure",
        100,
        "How long does an SDXL picture take, beside the bare diffusers call?",
    ),
    Part(
        "transcription",
        "benchmarks.gpu.transcription:measure",
        50,
        "How many seconds of sound does Whisper read a second?",
    ),
    Part(
        "load",
        "benchmarks.gpu.load:measure",
        60,
        "What does loading from files take, in seconds and in memory that stays?",
    ),
    Part(
        "smaller",
        "benchmarks.gpu.smaller:measure",
        120,
        "What do int8, fp8 and nf4 weights and an fp8 cache gain, in memory, tokens and swaps?",
    ),
    Part(
        "confinement",
        "benchmarks.gpu.confinement:check",
        70,
        "Does a worker work on the card while it can open nothing but its own files?",
    ),
    Part(
        "attention",
        "benchmarks.gpu.attention:measure",
        30,
        "Which attention backend runs, and does it plan again for each length?",
    ),
    Part(
        "exit",
        "benchmarks.gpu.worker_exit:measure",
        20,
        "How soon after a worker's end is its memory free?",
    ),
    Part(
        "compiled images",
        "benchmarks.gpu.images:measure_compiled",
        70,
        "What does compiling the denoiser cost, and what does it gain?",
    ),
    Part(
        "compiled text",
        "benchmarks.gpu.text:measure_compiled_generate",
        70,
        "How fast is one row of the library's compiled generate()?",
    ),
)
