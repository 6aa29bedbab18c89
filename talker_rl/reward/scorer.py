"""From speech to a score: a value with its components, or a Failure.

What is whose fault decides which. What the *candidate* did is scored, however bad: speech that decodes to silence, or
is too short to hold a word because its codes are, counts as all words deleted (WER 1, empty transcript). What the
*machinery* did is a Failure and never becomes a number: no audio, NaN in it, a recognizer that raised, a component
without a value. Sequences that cannot be decoded (end reasons `invalid_code`, `empty`) are Failures too; they are
refused before token2wav, so there is nothing to hear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from talker_rl.base.ids import stable_hash
from talker_rl.base.sound import resample
from talker_rl.base.text.alignment import Alignment, align, character_errors, written_errors
from talker_rl.base.text.tokens import normalize
from talker_rl.base.text.unwritten import find_unwritten
from talker_rl.base.versions import scores_version
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import FIRST, codec_named
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.reward.asr.aligner import Aligner
from talker_rl.reward.asr.base import SAMPLE_RATE, Failure, Recognizer, Transcript, check_audio
from talker_rl.reward.asr.registry import build_recognizer
from talker_rl.reward.combine import Combiner, ComponentError, Components
from talker_rl.reward.config import RewardConfig
from talker_rl.reward.pauses import PauseScore, score_pauses
from talker_rl.reward.silences import find_silences
from talker_rl.reward.stability import stability_components


@dataclass
class ScoreItem:
    """One utterance to score.

    >>> ScoreItem("a", "orange table.", sound, sample_rate=16_000)
    """

    id: str
    text: str
    audio: np.ndarray | None
    """(samples,) float32 at `sample_rate`; None where the candidate could not be decoded."""
    lang: str = "en"
    speaker: str = ""
    codes: list[int] | None = None
    """The candidate's codes without its stop; None where only audio is known."""
    end_reason: str | None = None
    seed: int | None = None
    reference_seconds: float | None = None
    """Duration of a clean rendering, where known."""
    prompt_id: str = ""
    sample_rate: int = field(default_factory=lambda: codec_named(FIRST).sample_rate)
    """Of the audio, Hz."""
    codec: str = FIRST
    """Name of the codec that the codes are of."""

    @classmethod
    def from_candidate(cls, prompt: Prompt, candidate: Candidate, audio: np.ndarray | None) -> ScoreItem:
        """The item of a candidate; `audio` is its decoded speech, or None where it cannot be decoded."""
        return cls(
            id=candidate.candidate_id,
            text=prompt.text,
            audio=audio,
            lang=prompt.lang,
            speaker=candidate.speaker,
            codes=candidate.codes,
            end_reason=candidate.end_reason,
            seed=candidate.seed,
            reference_seconds=prompt.reference_seconds,
            prompt_id=candidate.prompt_id,
            sample_rate=codec_named(candidate.codec).sample_rate,
            codec=candidate.codec,
        )


@dataclass
class ScoreResult:
    """A value and what made it."""

    id: str
    value: float
    components: Components
    transcript: list[str] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    text: str = ""
    """What the recognizer wrote, marks and case included where it gives them."""
    errors: str = "[]"
    """JSON: the alignment's errors, [op, reference, transcript]."""
    terms: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Why a component is null, by its name."""


class Scorer:
    """Scores items with one recognizer.

    Args:
        config: the reward.
        recognizer: what listens; built from `config.recognizer` where None. Evaluation passes another one.

    >>> [result] = Scorer(RewardConfig()).score([item])
    """

    def __init__(self, config: RewardConfig, recognizer: Recognizer | None = None) -> None:
        self.config = config
        self.combiner = Combiner(config)
        self.recognizer = recognizer if recognizer is not None else build_recognizer(config.recognizer)
        self.aligner = Aligner(config.pauses.aligner) if config.pauses.aligner is not None else None

    def score(self, items: Sequence[ScoreItem]) -> list[ScoreResult | Failure]:
        """Scores in the order of the items; no item's score depends on another.

        Raises:
            TalkerRLError: the recognizer as a whole cannot work.
        """
        results: list[ScoreResult | Failure | None] = [self._refuse(item) for item in items]
        heard: dict[int, Transcript | Failure] = {}
        by_language: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            if results[i] is None:
                by_language.setdefault(item.lang, []).append(i)
        for lang, members in by_language.items():
            sounds = [resample(_audio(items[i]), items[i].sample_rate, SAMPLE_RATE) for i in members]
            answers = self.recognizer.transcribe(sounds, lang)
            if len(answers) != len(members):
                message = f"{len(answers)} results for {len(members)} inputs"
                answers = [Failure("result_count", message)] * len(members)
            heard.update(zip(members, answers, strict=True))
        for i, answer in heard.items():
            results[i] = self._finish(items[i], answer)
        return [r for r in results if r is not None]

    def fingerprint(self) -> str:
        """Changes whenever a score may change: settings, recognizer, and this package's own code."""
        return stable_hash("scorer", self.config.settings(), self.hearing(), scores_version())

    def hearing(self) -> str:
        """Fingerprint of the models that listen."""
        heard = self.recognizer.fingerprint()
        return heard if self.aligner is None else stable_hash(heard, self.aligner.fingerprint())

    def _refuse(self, item: ScoreItem) -> Failure | None:
        """Why this item cannot reach the recognizer, or None. What the recognizer itself refuses is judged later."""
        try:
            reference = normalize(item.text, item.lang).tokens
        except ValueError as error:
            return Failure("bad_language", str(error))
        if not reference:
            return Failure("empty_reference", f"the text {item.text!r} has no word to say")
        if item.end_reason == "invalid_code":
            return Failure("invalid_code", "the sequence ended in an id that token2wav has no row for")
        if item.end_reason == "empty" or (item.codes is not None and not item.codes):
            return Failure("empty", "the candidate has no codes")
        if item.audio is None:
            return Failure("no_audio", "the item came without audio", retryable=True)
        fault = check_audio(item.audio, item.sample_rate, 0.0, -math.inf)
        if fault is None and len(item.audio) == 0:
            fault = Failure("too_short", "the audio is empty")
        return fault

    def _finish(self, item: ScoreItem, answer: Transcript | Failure) -> ScoreResult | Failure:
        if isinstance(answer, Failure):
            own_doing = answer.code == "silent" or (answer.code == "too_short" and _codes_explain(item))
            if not own_doing:
                return answer
            answer = Transcript([], [])
        config = self.config
        audio = _audio(item)
        text = normalize(item.text, item.lang)
        alignment = align(text.tokens, answer.tokens)
        silences = find_silences(audio, item.sample_rate, config.pauses, config.stability.silence_dbfs)
        aligned = self._aligned(item, text.tokens, answer)
        if isinstance(aligned, Failure) and aligned.retryable:
            return aligned  # the machine's fault of a moment is nothing to be remembered of the candidate
        fault = answer.spans_fault if aligned is None else aligned.message if isinstance(aligned, Failure) else None
        pauses = score_pauses(
            text.marks, alignment.hits, answer.spans, silences, config.pauses, len(answer.tokens), fault,
            reference_spans=None if isinstance(aligned, Failure) else aligned, free=text.free,
        )
        counts = alignment.counts
        components: Components = {
            "wer": counts.rate,
            "cer": character_errors(text.tokens, answer.tokens).rate,
            "substitutions": float(counts.substitutions),
            "deletions": float(counts.deletions),
            "insertions": float(counts.insertions),
            "ref_words": float(counts.length),
            **pause_components(pauses),
            **stability_components(
                audio,
                item.sample_rate,
                silences,
                text.tokens,
                item.codes,
                codec_named(item.codec),
                item.end_reason,
                item.reference_seconds,
                config.stability,
            ),
        }
        try:
            components |= self.combiner.own_components(item, components)
            combined = self.combiner.combine(components)
        except ComponentError as error:
            reason = f" ({pauses.reason})" if pauses.reason else ""
            return Failure(error.code, f"{error}{reason}")
        components |= {"gate": combined.gate, **self._written(item, alignment, components)}
        notes = {"pause_error": pauses.reason} if pauses.reason else {}
        return ScoreResult(
            id=item.id,
            value=combined.value,
            components=components,
            transcript=answer.tokens,
            spans=answer.spans,
            text=answer.written,
            errors=alignment.ops_json(),
            terms=combined.terms,
            notes=notes,
        )

    def _written(self, item: ScoreItem, alignment: Alignment, components: Components) -> Components:
        """How many words of the text recognizers do not write, and the reward with those left out (null where there
        are none, or nothing else is left)."""
        found = find_unwritten(item.text)
        if not found.any:
            return {"unwritten": 0.0, "reward_written": None}
        words = written_errors(alignment, found)
        if words is not None:
            words |= {"reward_written": self.combiner.combine(components | words).value}
        return {"unwritten": float(found.count), "reward_written": words["reward_written"] if words else None}

    def _aligned(
        self, item: ScoreItem, tokens: list[str], heard: Transcript
    ) -> list[tuple[float, float]] | Failure | None:
        """The aligner's times of the reference's tokens; None where the recognizer's own are to be used."""
        if self.aligner is None or not heard.tokens or not self.aligner.knows(item.lang):
            return None
        return self.aligner.align(resample(_audio(item), item.sample_rate, SAMPLE_RATE), tokens)


def pause_components(pauses: PauseScore) -> Components:
    """Columns of a pause score; all but the number of marks are None where times were unusable."""

    def number(value: int | None) -> float | None:
        return None if value is None else float(value)

    return {
        "pause_error": pauses.pause_error,
        "pause_error_scorable": pauses.pause_error_scorable,
        "pause_precision": pauses.precision,
        "pause_recall": pauses.recall,
        "pause_f1": pauses.f1,
        "pause_scorable_share": pauses.scorable_share,
        "pause_marks": float(pauses.marks),
        "pause_hits": number(pauses.hits),
        "pause_misses": number(pauses.misses),
        "pause_false": number(pauses.false_pauses),
        "pause_out_of_bounds": number(pauses.out_of_bounds),
    }


def to_score_row(item: ScoreItem, result: ScoreResult | Failure) -> ScoreRow:
    """The stored record of a result. Notes on null components go into `error_message` of a row whose status is ok."""
    if isinstance(result, Failure):
        return ScoreRow(
            prompt_id=item.prompt_id,
            candidate_id=item.id,
            status="failed",
            error_code=result.code,
            error_message=result.message,
            retryable=result.retryable,
        )
    return ScoreRow(
        prompt_id=item.prompt_id,
        candidate_id=item.id,
        status="ok",
        reward=result.value,
        components=dict(result.components),
        transcript=result.transcript,
        spans=result.spans,
        errors=result.errors,
        error_message="; ".join(f"{name}: {note}" for name, note in result.notes.items()) or None,
    )


def _codes_explain(item: ScoreItem) -> bool:
    """The audio is short because the candidate has that few codes, not because decoding went wrong."""
    if item.codes is None or item.audio is None:
        return False
    codec = codec_named(item.codec)
    return abs(len(item.audio) / item.sample_rate - codec.seconds(item.codes)) <= 1.5 / codec.rate


def _audio(item: ScoreItem) -> np.ndarray:
    assert item.audio is not None  # `_refuse` has seen to it
    return item.audio
