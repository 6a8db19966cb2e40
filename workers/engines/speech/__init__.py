"""The speech engine: Bark, sentence by sentence, many sentences in each step."""
