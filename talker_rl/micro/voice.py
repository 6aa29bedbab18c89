"""A further voice for the micro world: a recording to add it from, and codes to teach it to the Talker with.

The micro codec has an encoder, so another espeak-ng voice gives both. The published model's encoder was never released:
there, codes come from elsewhere, or are the model's own best samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.base.places import check_writable_folder
from talker_rl.micro import checkpoint_dir
from talker_rl.micro.lexicon import VOICES

REFERENCE_SECONDS = 6.0


def make_voice(out: Path, name: str, variant: str, rate: int, count: int, others: int, seed: int) -> dict[str, Any]:
    """Write ``reference.wav`` and ``train.jsonl`` to the folder ``out``; returns what is in them.

    Args:
        name: the new speaker's.
        variant: espeak-ng voice variant, e.g. f2.
        rate: words per minute, English; Chinese goes at 230 / 190 of it, as the shipped voices do.
        count, others: train texts that the new speaker says, and that each of the shipped ones says, so that training
            does not forget them. Which text is whose is drawn by ``seed``.
    """
    import random

    import numpy as np
    import soundfile

    from talker_rl.base.disk import atomic_write
    from talker_rl.micro.codec import Codec
    from talker_rl.micro.corpus import SAMPLE_RATE, RenderRequest, render_all
    from talker_rl.micro.prompts import prompt_sentences
    from talker_rl.records.codec import FIRST, codec_named

    if name in VOICES:
        raise ConfigError(f"{name} is one of the shipped speakers", where="--name", fix="choose another name")
    rng = random.Random(seed)
    sentences = list(prompt_sentences()["train"])
    rng.shuffle(sentences)
    speakers = [name] * count + [old for old in sorted(VOICES) for _ in range(others)]
    if len(speakers) > len(sentences):
        raise ConfigError(f"{len(speakers)} texts are asked for, there are {len(sentences)}", where="--count, --others",
                          fix="ask for fewer")
    own: dict[str, Any] = {"en_voice": f"en-us+{variant}", "zh_voice": f"cmn+{variant}", "rate": rate,
                           "zh_rate": round(rate * 230 / 190)}
    requests = [
        RenderRequest(list(clauses), speaker, **(own if speaker == name else {}))
        for clauses, speaker in zip(sentences, speakers, strict=False)
    ]
    rendered = render_all(requests)
    codec = Codec.load(checkpoint_dir() / "codec.safetensors")
    rows: list[dict[str, Any]] = []
    for r in rendered:
        codes = codec.encode(r.audio)
        seconds = codec_named(FIRST).seconds(codes)
        rows.append({"text": r.text, "speaker": r.speaker, "lang": r.lang, "codes": codes,
                     "reference_seconds": seconds})
    rng.shuffle(rows)
    out.mkdir(parents=True, exist_ok=True)
    spoken = np.concatenate([r.audio for r in rendered if r.speaker == name])[: round(REFERENCE_SECONDS * SAMPLE_RATE)]
    soundfile.write(str(out / "reference.wav"), spoken, SAMPLE_RATE, subtype="PCM_16")
    atomic_write(out / "train.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"folder": str(out), "sentences": len(rows), "of the new speaker": count,
            "seconds of codes": round(sum(row["reference_seconds"] for row in rows), 1)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its options, and what it does."""
    parser.description = __doc__
    parser.epilog = "example:\n  talker-rl micro voice --out runs/nova      a voice for talker-rl speaker add"
    parser.add_argument("--out", type=Path, required=True, help="folder for reference.wav and train.jsonl")
    parser.add_argument("--name", default="Nova", help="the new speaker's (default: %(default)s)")
    parser.add_argument("--variant", default="f2", help="espeak-ng voice variant (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=165, help="words per minute; the shipped voices speak 190 "
                        "(default: %(default)s)")
    parser.add_argument("--count", type=int, default=500, help="texts of the new speaker (default: %(default)s)")
    parser.add_argument("--others", type=int, default=150, help="texts of each shipped one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which text is whose (default: %(default)s)")


def verb(args: argparse.Namespace) -> int:
    """The command."""
    check_writable_folder(args.out)
    made = make_voice(args.out, args.name, args.variant, args.rate, args.count, args.others, args.seed)
    print(", ".join(f"{key}: {value}" for key, value in made.items()))
    return 0
