"""Lists the parts of the check in order of value: the first ones survive a cut-off."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Describes a question that a process of its own answers."""

    name: str
    function: str  #: "module:function", called with a Recorder
    limit: float  #: seconds after which the process is killed
    question: str


#: The first eight take seven minutes at most together: correctness, decoding, kernels, graphs, a
#: load, pictures and speech. What these leave of the time goes to the rest.
PARTS = (
    Part(
        "ceilings",
        "benchmarks.gpu.ceilings:measure",
        25,
        "What are the card and its software, and what can the card do at most?",
    ),
    Part(
        "tests",
        "benchmarks.gpu.correctness:run_tests",
        85,
        "Do all engines give the libraries' own output on the card?",
    ),
    Part(
        "text",
        "benchmarks.gpu.text:measure",
        75,
        "How fast is the text engine, by rows and prompt lengths, and where does a step's time go?",
    ),
    Part(
        "attention",
        "benchmarks.gpu.attention:measure",
        25,
        "Which attention backend runs, and does it plan again for each length?",
    ),
    Part(
        "text steps",
        "benchmarks.gpu.text_steps:measure",
        85,
        "What do overlapped steps, graphs and the kernel gain, and are the answers the same?",
    ),
    Part(
        "load",
        "benchmarks.gpu.load:measure",
        35,
        "What does loading from files take, in seconds and in memory that stays?",
    ),
    Part(
        "images",
        "benchmarks.gpu.images:measure",
        50,
        "How long does an SDXL picture take, beside the bare diffusers call?",
    ),
    Part(
        "speech",
        "benchmarks.gpu.speech:measure",
        40,
        "How many seconds of sound does Bark make a second, beside the library?",
    ),
    Part(
        "server",
        "benchmarks.gpu.server:measure",
        120,
        "Do several models share one card, and is its memory back at the end?",
    ),
    Part(
        "imports",
        "benchmarks.gpu.imports:check",
        30,
        "Does a worker that has imported its libraries still choose its card freely?",
    ),
    Part(
        "transcription",
        "benchmarks.gpu.transcription:measure",
        50,
        "How many seconds of sound does Whisper read a second?",
    ),
    Part(
        "smaller",
        "benchmarks.gpu.smaller:measure",
        90,
        "What do int8, fp8 and nf4 weights and an fp8 cache gain, in memory, tokens and swaps?",
    ),
    Part(
        "confinement",
        "benchmarks.gpu.confinement:check",
        60,
        "Does a worker work on the card while it can open nothing but its own files?",
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
