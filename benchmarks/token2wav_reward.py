"""Preset `reward` on the micro model: whole decode against transformers' loop with upstream's defaults.

The case tells what it does to WER, by both recognizers, on utterances of the base Talker on the eval texts: the
difference in points and its paired-bootstrap 95 % interval. `--curve` adds a row a point of the options that change
numbers, with the mean absolute distance of the sound's log-mel from that of the defaults, in nats.

Other geometries than mid have random weights, so only speed is told: of the preset, and of it in other precisions.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.mel import log_mel
from talker_rl.speech.qwen2_5_omni.token2wav import decode, utterance_noise

from ._limits import counted, decoding, goal, share
from ._measure import Row, compare, noted, peak_of, say, seconds_of
from ._upstream import random_codes, upstream_wave
from .geometry import Models

if TYPE_CHECKING:
    from ._speech import Spoken

CURVE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "5 points": {"num_steps": 5},
    "no guidance": {"guidance_scale": 0},
    "5 points, no guidance": {"num_steps": 5, "guidance_scale": 0},
    "3 points, no guidance": {"num_steps": 3, "guidance_scale": 0},
    "2 points, no guidance": {"num_steps": 2, "guidance_scale": 0},
    "5 points, midpoint, no guidance": {"num_steps": 5, "solver": "midpoint", "guidance_scale": 0},
    "3 points, midpoint, no guidance": {"num_steps": 3, "solver": "midpoint", "guidance_scale": 0},
    "2 points, midpoint, no guidance": {"num_steps": 2, "solver": "midpoint", "guidance_scale": 0},
    "5 points, Euler, no guidance": {"num_steps": 5, "solver": "euler", "guidance_scale": 0},
    "3 points, Euler, no guidance": {"num_steps": 3, "solver": "euler", "guidance_scale": 0},
    "2 points, Euler, no guidance": {"num_steps": 2, "solver": "euler", "guidance_scale": 0},
    "bfloat16": {"dtype": "bfloat16"},
    "2 points, no guidance, bfloat16": {"num_steps": 2, "guidance_scale": 0, "dtype": "bfloat16"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--utterances", type=int, default=200, help="that WER is measured on")
    parser.add_argument("--timed", type=int, default=16, help="utterances that are timed")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds, of random weights; the shortest: 2")
    parser.add_argument("--curve", action="store_true", help="a row for every point")


def rows(args: argparse.Namespace) -> list[Row]:
    """The preset, then the curve."""
    models = Models.of(args)
    return spoken_rows(args) if models.mid else random_rows(args, models)


def random_rows(args: argparse.Namespace, models: Models) -> list[Row]:
    """8 utterances of random codes through random weights of the whole geometry."""
    token2wav, speaker = models.token2wav(), models.speaker()
    lengths = torch.linspace(min(2.0, args.longest), args.longest, 3 if args.quick else 8).tolist()
    codes = [random_codes(seconds, i) for i, seconds in enumerate(lengths)]
    noise = models.noise(codes, token2wav.code2wav_dit_model.mel_dim)
    seeds, geo = list(range(len(codes))), counted(token2wav=token2wav)

    def theirs() -> list[np.ndarray]:
        return [upstream_wave(token2wav, c, speaker, n) for c, n in zip(codes, noise, strict=True)]

    found = []
    for name, options in {"": {}, " in TF32": {"tf32": True}, " in bfloat16 and TF32": BRIEF}.items():
        cfg = Token2WavConfig(preset="reward", batch_size=len(codes), **options)
        case = (f"preset reward{name}, {len(codes)} utterances of {lengths[0]:g} to {lengths[-1]:g} s, random weights, "
                f"{cfg.passes} DiT passes; against transformers' loop with its defaults")

        def ours(cfg: Token2WavConfig = cfg) -> list[np.ndarray]:
            return decode(token2wav, codes, [speaker] * len(codes), seeds, cfg)

        if found:  # the baseline is the same
            _, peak = peak_of(ours)
            seconds = statistics.median(seconds_of(ours) for _ in range(args.repeats))
            row = replace(found[0], case=case, ours_s=seconds, ratio=found[0].theirs_s / seconds, ours_peak_mib=peak)
        else:
            row = compare("token2wav_reward", case, ours, theirs, repeats=args.repeats)
        works = decoding(geo, codes, cfg)
        found.append(noted(row, share(works, row.ours_s, models.device), goal("20 x", row.ratio >= 20, models)))
    return found


BRIEF: dict[str, Any] = {"dtype": "bfloat16", "tf32": True}


def spoken_rows(args: argparse.Namespace) -> list[Row]:
    """What the micro model says, and what recognizers make of it."""
    from ._speech import spoken

    said = spoken(12 if args.quick else args.utterances)
    heard, timed = _Heard(said), 4 if args.quick else args.timed
    chosen = said.candidates[:timed]

    def theirs() -> Sequence[np.ndarray]:
        return [
            upstream_wave(said.omni.token2wav, c.codes, said.omni.speaker(c.speaker),
                          utterance_noise(seed, 2 * len(c.codes), 80))
            for c, seed in zip(chosen, said.seeds, strict=False)
        ]

    cfg = Token2WavConfig(preset="reward")
    first = compare("token2wav_reward", heard.describe("preset reward", cfg), lambda: said.decode(cfg, timed), theirs,
                    repeats=args.repeats)
    return [first, *(_point(first, said, heard, timed, name) for name in (CURVE if args.curve else ()))]


def _point(first: Row, said: Spoken, heard: _Heard, timed: int, name: str) -> Row:
    """A row of the curve, timed by turns with the preset, so that a machine that has become slower does not matter."""
    cfg, preset = Token2WavConfig(**CURVE[name]), Token2WavConfig(preset="reward")
    row = compare("token2wav_reward", heard.describe(name, cfg), lambda: said.decode(cfg, timed),
                  lambda: said.decode(preset, timed), repeats=first.n)
    return replace(row, ours_s=first.ours_s / row.ratio, theirs_s=first.theirs_s, ratio=first.ratio * row.ratio,
                   theirs_peak_mib=first.theirs_peak_mib)


class _Heard:
    """What the recognizers make of a decode, against the decode with upstream's defaults."""

    def __init__(self, said: Spoken) -> None:
        from talker_rl.reward.asr.funasr_recognizer import FunASRRecognizer

        from ._speech import errors

        self._said = said
        self._recognizers = {name: FunASRRecognizer(f"micro:{name}") for name in ("reward", "eval")}
        self._waves = said.decode(Token2WavConfig())
        self._before = {name: errors(r, self._waves, said.prompts) for name, r in self._recognizers.items()}

    def describe(self, name: str, cfg: Token2WavConfig) -> str:
        """The case: passes, log-mel distance and change of WER."""
        from ._speech import errors, wer_change

        say(f"token2wav_reward: {name}")
        waves = self._said.decode(cfg)
        mels = [[log_mel(torch.from_numpy(w)) for w in side] for side in (waves, self._waves)]
        distance = np.mean([float((a - b).abs().mean()) for a, b in zip(*mels, strict=True)])
        parts = []
        for which, recognizer in self._recognizers.items():
            change, low, high = wer_change(self._before[which], errors(recognizer, waves, self._said.prompts))
            wrong, words = self._before[which]
            parts.append(f"{which} {100 * wrong.sum() / words.sum():.1f} {change:+.2f} [{low:+.2f}, {high:+.2f}]")
        return (f"{name}: {cfg.passes} DiT passes; log-mel distance {distance:.3f}; WER % of {len(waves)} and change, "
                f"{', '.join(parts)}; against transformers' loop with its defaults")
