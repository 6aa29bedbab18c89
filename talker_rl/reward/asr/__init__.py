"""Recognisers: one protocol, FunASR and Whisper behind it."""
