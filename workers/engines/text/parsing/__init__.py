"""Parses what a chat model writes into content, reasoning and tool calls.

``families`` is the table of formats, ``recognition`` finds a model's row, ``region_parser`` hardens
the library's parser, ``readers`` read calls, and ``answer`` gives what may be shown.
"""
