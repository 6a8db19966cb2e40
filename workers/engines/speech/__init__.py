"""The speech engine speaks texts sentence by sentence, many sentences in each step."""
