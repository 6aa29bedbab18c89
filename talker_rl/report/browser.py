"""The pair browser's data: every pair with both transcripts aligned, as JSON for the page's script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from talker_rl.report.clips import Speech, key_of, place_of, spaced, speech_of
from talker_rl.report.collect import PairToHear, Run, Study
from talker_rl.report.transcript import alignment_of, codes_per_word


@dataclass
class Browser:
    """What the page embeds for its pair browser."""

    pairs: list[dict[str, Any]]
    clips: dict[str, str]
    """Clip id -> data URI."""
    of: int
    """Pairs in the folders; the page holds those at even distances."""
    notes: list[str]
    seed: int = 0
    """Decides which side is A in blind listening."""


def browser(study: Study, *, pairs: int, audio_format: str, max_bytes: int) -> Browser:
    """Pairs at even distances, with speech as far as it fits into ``max_bytes``."""
    every = [(run, i) for run in study.runs for i in range(len(run.pairs))]
    chosen = spaced(every, pairs)
    shown = [(run, item) for run in study.runs for item in run.heard(run.pairs[i] for of, i in chosen if of is run)]
    speech = speech_of(shown, audio_format=audio_format, max_bytes=max_bytes)
    return Browser([_pair(run, item, speech) for run, item in shown], speech.clips, len(every), speech.notes)


def _pair(run: Run, item: PairToHear, speech: Speech) -> dict[str, Any]:
    pair = item.pair
    sides = {
        "chosen": _side(run, item, pair.chosen_id, pair.chosen_reward, pair.chosen_seconds, speech),
        "rejected": _side(run, item, pair.rejected_id, pair.rejected_reward, pair.rejected_seconds, speech),
    }
    return {"id": pair.pair_id, "prompt": pair.prompt_id, "run": f"{run.arm}{'/' if item.stage else ''}"
            f"{item.stage.rstrip('/')}", "text": pair.text, "speaker": pair.speaker, "margin": pair.margin, **sides}


def _side(
    run: Run, item: PairToHear, candidate_id: str, reward: float, seconds: float, speech: Speech
) -> dict[str, Any]:
    candidate, score = item.candidates.get(candidate_id), item.scores.get(candidate_id)
    clip = key_of(run, candidate) if candidate else None
    strip = speech.strips.get(place_of(run, item, candidate_id))
    alignment = alignment_of(item.pair.text, score.transcript) if score else []
    lasting = codes_per_word(alignment, score.spans if score else [], item.pair.chosen.codec.rate)
    return {
        "id": candidate_id, "clip": clip if clip in speech.clips else None, "strip": strip.data if strip else None,
        "reward": reward, "seconds": seconds,
        "codes": round(seconds * item.pair.chosen.codec.rate), "wer": score.components.get("wer") if score else None,
        "cut": candidate is not None and candidate["end_reason"] == "max_tokens",
        "tokens": [[*token, codes] for token, codes in zip(alignment, lasting, strict=True)],
    }
