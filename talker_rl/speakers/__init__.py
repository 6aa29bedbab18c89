"""Speakers of one's own: a new entry for spk_dict.pt, its check by shape and by sound, and the test that tells
speakers apart after training."""
