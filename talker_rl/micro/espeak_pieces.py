"""Speaks clauses in a process that has nothing else in memory, so that forking for each of them is cheap."""

from __future__ import annotations

import json
import struct
import sys
import time


def main(path: str) -> None:
    """Read ``[[voice, rate, words], ...]`` from stdin, append each piece to ``path``.

    A piece: int32 header length, int32 samples, JSON header, float64 onsets, int16 samples.
    """
    from talker_rl.micro.espeak import Espeak

    keys = json.load(sys.stdin)
    espeak, began = Espeak(), time.time()
    with open(path, "ab", buffering=1 << 20) as out:
        for i, (voice, rate, words) in enumerate(keys):
            speech = espeak.say(voice, rate, tuple(words))
            header = json.dumps([voice, rate, words]).encode()
            out.write(struct.pack("<ii", len(header), len(speech.samples)) + header)
            out.write(struct.pack(f"<{len(words)}d", *speech.onsets) + speech.samples.tobytes())
            if i % 1000 == 999:
                print(f"pieces {i + 1}/{len(keys)} {time.time() - began:.0f} s", flush=True)
