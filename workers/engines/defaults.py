"""Holds the engines' numbers for settings that a model leaves open; free of torch.

The gateway estimates memory with the very numbers that the engines run with.
"""

_MIB = 1024 * 1024

#: What a process takes of a card beside the allocator's memory, until it was measured there: the
#: context, its kernels and the libraries' workspaces.
CONTEXT_BYTES = 500 * _MIB

TEXT_ROWS = 64  #: sequences at once
TEXT_CACHE_BYTES = {"cpu": 512 * _MIB, "cuda": 4096 * _MIB}
TEXT_STEP_TOKENS = {"cpu": 256, "cuda": 2048}  #: tokens of a step over all rows
#: Ranks of LoRAs are rounded up to multiples of it: products of such sizes are quick.
LORA_RANK_STEP = 8

IMAGE_BATCH = 4  #: images in one pass

SPEECH_ROWS = 16  #: sentences at once, and the memory that their attention caches may take
SPEECH_CACHE_BYTES = {"cpu": 2048 * _MIB, "cuda": 4096 * _MIB}

TRANSCRIPTION_BATCH = 8  #: files at once

EMBEDDING_JOBS = 32  #: requests at once
EMBEDDING_TEXTS = 256  #: texts in one pass
EMBEDDING_STEP_TOKENS = {"cpu": 1024, "cuda": 16384}  #: tokens of a pass, padding included
