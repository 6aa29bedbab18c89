"""Preference training of the Talker: reference log-probs, collation, trainer, and one call that does it all."""
