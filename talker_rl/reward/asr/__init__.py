"""Recognizers: one protocol, FunASR and Whisper behind it."""
