"""The transcription engine: Whisper's windows, of several files together."""
