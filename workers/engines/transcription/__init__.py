"""The transcription engine runs Whisper on windows of several files together."""
