"""Training and test speech of the micro recognizers: espeak-ng renderings, plain, damaged and decoded."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from talker_rl.base.disk import replacing
from talker_rl.micro.asr_augment import AUGMENTS, Utterance, augment, mask_bands, vocoder_damage
from talker_rl.micro.asr_model import IGNORE_ID, TOKENS, build_frontend, word_tokens
from talker_rl.micro.corpus import Rendered, RenderRequest, WordSpan, render_all
from talker_rl.micro.lexicon import CHINESE, ENGLISH, LEAD_SECONDS, TAIL_SECONDS, VOICES, Clause

TOKEN_ID = {token: number for number, token in enumerate(TOKENS)}
EXTRA_VARIANTS = ("+m1", "+m2", "+m3", "+m4", "+f1", "+f2", "+f4")
POOL_SEED = 11
HELD_OUT_SEED = 990_017
DECODE_STEPS = 3
"""Time points of token2wav's flow, as the demo uses it."""
CACHE = Path(os.environ.get("TALKER_RL_CACHE", "build/micro/cache"))


@dataclass(frozen=True)
class PoolSettings:
    """How much speech to train on."""

    utterances: int = 4000
    damaged: float = 0.15
    """Share that goes through `vocoder_damage`."""
    decoded: int = 600
    """Utterances that also exist as codes -> speech."""


def to_utterance(rendered: Rendered) -> Utterance:
    """A rendering as a training utterance at 16 kHz."""
    return make_utterance(rendered.audio, rendered.words)


def make_utterance(audio_24k: np.ndarray, words: list[WordSpan]) -> Utterance:
    """Audio at 24 kHz and its words as an Utterance (int16, to keep pools small).

    A Chinese word is halved between its characters: espeak reports word onsets only.
    """
    from scipy.signal import resample_poly

    audio = np.clip(resample_poly(audio_24k.astype(np.float32), 2, 3), -1, 1)
    tokens, spans, breaks = [], [], []
    for word in words:
        parts = word_tokens(word.word)
        length = (word.end - word.start) / len(parts)
        for k, part in enumerate(parts):
            tokens.append(TOKEN_ID[part])
            spans.append((word.start + k * length, word.start + (k + 1) * length))
            breaks.append(k == 0)
    return Utterance(np.round(audio * 32767).astype(np.int16), tuple(tokens), tuple(spans), tuple(breaks))


def render_cached(requests: list[RenderRequest]) -> list[Rendered]:
    """`render_all` (some 25 utterances per second), kept on disk by the requests and the synthesizer's source."""
    here = Path(__file__).parent
    key = hashlib.sha256(json.dumps([asdict(r) for r in requests], ensure_ascii=False).encode())
    key.update(repr((VOICES, LEAD_SECONDS, TAIL_SECONDS)).encode())
    for source in ("corpus.py", "espeak.py"):
        key.update((here / source).read_bytes())
    path = CACHE / f"speech-{key.hexdigest()[:16]}.npz"
    if not path.exists():
        rendered = render_all(requests)
        words = [[[w.word, w.start, w.end] for w in r.words] for r in rendered]
        meta = [[r.text, r.lang, r.speaker, r.pauses, spans] for r, spans in zip(rendered, words, strict=True)]
        samples = [np.round(r.audio * 32767).astype(np.int16) for r in rendered]
        lengths, told = np.array([len(s) for s in samples]), np.array(json.dumps(meta, ensure_ascii=False))
        _keep(path, audio=np.concatenate(samples), lengths=lengths, meta=told)
    with np.load(path, allow_pickle=False) as kept:
        clips = np.split(kept["audio"].astype(np.float32) / 32767, np.cumsum(kept["lengths"])[:-1])
        meta = json.loads(str(kept["meta"]))
    return [
        Rendered(clip, [WordSpan(*w) for w in words], text, lang, speaker, [(int(i), float(s)) for i, s in pauses])
        for clip, (text, lang, speaker, pauses, words) in zip(clips, meta, strict=True)
    ]


def random_clauses(rng: random.Random) -> list[Clause]:
    """Words in any order: doubled, interrupted, of both languages, 1 to 10 of them. Broader than the prompts."""
    total = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    clauses: list[Clause] = []
    lang = rng.choice(("en", "en", "zh"))
    while total > 0:
        if rng.random() < 0.25:
            lang = "zh" if lang == "en" else "en"
        words: list[str] = []
        for _ in range(min(total, rng.randint(1, 4))):
            words.append(rng.choice(ENGLISH if lang == "en" else CHINESE))
            if rng.random() < 0.12:
                words.append(words[-1])
        total -= len(words)
        clauses.append(Clause(lang, tuple(words), "," if rng.random() < 0.6 else "."))
    return clauses


def random_requests(count: int, seed: int, plain: bool = False) -> list[RenderRequest]:
    """Rendering requests with pauses of any length; ``plain`` keeps to the two speakers at their own rate."""
    rng = random.Random(seed)
    requests = []
    for _ in range(count):
        clauses = random_clauses(rng)
        speaker = rng.choice(sorted(VOICES))
        pauses = [rng.choice((0.0, rng.uniform(0.03, 0.15), rng.uniform(0.15, 0.8))) for _ in clauses[:-1]]
        request = RenderRequest(clauses, speaker, pauses, lead=rng.uniform(0.0, 0.3), tail=rng.uniform(0.0, 0.5))
        if rng.random() < 0.3:
            words = sum(len(c.words) for c in clauses)
            request.extra_pauses = {rng.randrange(words): rng.uniform(0.2, 0.6)}
        if not plain and rng.random() < 0.4:
            variant = rng.choice(EXTRA_VARIANTS)
            request.en_voice, request.zh_voice = "en-us" + variant, "cmn" + variant
        if not plain and rng.random() < 0.4:
            faster = rng.uniform(0.85, 1.15)
            request.rate = round(VOICES[speaker].rate * faster)
            request.zh_rate = round(VOICES[speaker].zh_rate * faster)
        requests.append(request)
    return requests


def build_pool(settings: PoolSettings, seed: int) -> list[Utterance]:
    """Three quarters (by seed) of the shared renderings for training; a share is damaged as by a vocoder."""
    rng = random.Random(seed)
    rendered = render_cached(random_requests(settings.utterances, POOL_SEED))
    pool = [to_utterance(r) for r in rng.sample(rendered, 3 * len(rendered) // 4)]
    for i, utterance in enumerate(pool):
        if rng.random() < settings.damaged:
            worse = vocoder_damage(utterance.audio.astype(np.float32) / 32768, rng, rng.randint(3, 8))
            pool[i] = replace(utterance, audio=np.round(worse * 32767).astype(np.int16))
    return pool


def decoded(rendered: list[Rendered], build: Path, seed: int) -> list[Utterance]:
    """The same utterances as codes -> speech: by token2wav where its DiT is trained, by the vocoder alone before.

    Kept on disk by the utterances and the weights. ``build`` holds ``{codec,vocoder,dit}.safetensors``.
    """
    from talker_rl.micro.assemble import build_model, speaker_table
    from talker_rl.micro.codec import Codec
    from talker_rl.speech.config import Token2WavConfig
    from talker_rl.speech.qwen2_5_omni import token2wav

    key = hashlib.sha256(repr([(r.text, r.speaker, len(r.audio), seed) for r in rendered]).encode())
    for name in ("codec", "vocoder", "dit"):
        if (build / f"{name}.safetensors").exists() or name != "dit":
            key.update((build / f"{name}.safetensors").read_bytes())
    path = CACHE / f"decoded-{key.hexdigest()[:16]}.npz"
    if not path.exists():
        codec = Codec.load(build / "codec.safetensors")
        codes = [codec.encode(r.audio) for r in rendered]
        model = build_model(build).token2wav
        if (build / "dit.safetensors").exists():
            table = speaker_table(build)
            cfg = Token2WavConfig(num_steps=DECODE_STEPS, guidance_scale=0.0, batch_size=8)
            seeds = [seed + i for i in range(len(codes))]
            audio = token2wav.decode(model, codes, [table[r.speaker] for r in rendered], seeds, cfg, progress=_tell)
        else:
            vocoder, audio = model.code2wav_bigvgan_model, []
            for i, sequence in enumerate(codes):
                mel = codec.centroids[torch.tensor(sequence)].reshape(-1, 80)
                with torch.inference_mode():
                    audio.append(vocoder(mel.T[None]).reshape(-1).float().numpy())
                _tell(i + 1, len(codes))
        samples = [np.round(np.clip(a, -1, 1) * 32767).astype(np.int16) for a in audio]
        _keep(path, audio=np.concatenate(samples), lengths=np.array([len(s) for s in samples]))
    with np.load(path, allow_pickle=False) as kept:
        clips = np.split(kept["audio"].astype(np.float32) / 32767, np.cumsum(kept["lengths"])[:-1])
    return [make_utterance(clip, r.words) for clip, r in zip(clips, rendered, strict=True)]


def _tell(done: int, total: int) -> None:
    if done % 80 == 0 or done == total:
        print(f"decoded {done} of {total}", flush=True)


def _keep(path: Path, **arrays: np.ndarray) -> None:
    """``np.savez``, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes every keyword for allow_pickle


def decoded_pool(settings: PoolSettings, build: Path) -> list[Utterance]:
    """Decoded speech for training: the first of the shared renderings that the two speakers speak at their rate."""
    requests = random_requests(settings.utterances, POOL_SEED)
    rendered = render_cached(requests)
    usual = [r for q, r in zip(requests, rendered, strict=True) if q.en_voice is None and q.rate is None]
    return decoded(usual[: settings.decoded], build, POOL_SEED)


def held_out(count: int, build: Path | None = None) -> list[Utterance]:
    """Test utterances of the two speakers, of a seed that no training uses; decoded if ``build`` is given."""
    rendered = render_cached(random_requests(200, HELD_OUT_SEED, plain=True))[:count]
    return decoded(rendered, build, HELD_OUT_SEED) if build else [to_utterance(r) for r in rendered]


Batch = tuple[Tensor, Tensor, Tensor, Tensor, list[list[tuple[float, float]]]]
"""Features (B, T, D), lengths (B,), text (B, L) padded with -1, text lengths (B,), spans in seconds."""


class Batches:
    """Endless random batches of features and labels; the same seed gives the same batches."""

    def __init__(
        self,
        name: str,
        plain: list[Utterance],
        decoded: list[Utterance],
        size: int,
        seed: int,
        cmvn_file: Path | None = None,
    ) -> None:
        self.setting, self.plain, self.decoded, self.size = AUGMENTS[name], plain, decoded, size
        self.rng, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.frontend = build_frontend()
        self.ready: list[Batch] = []
        self.cmvn = self._read_cmvn(cmvn_file) if cmvn_file else self._measure_cmvn()

    def _read_cmvn(self, path: Path) -> tuple[Tensor, Tensor]:
        from funasr.frontends.wav_frontend import load_cmvn

        shift, scale = load_cmvn(str(path))
        return -shift, 1 / scale

    def _measure_cmvn(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the features of 300 augmented utterances (digital silence left out of both)."""
        features, lengths = self._features([self._one() for _ in range(300)])
        frames = torch.cat([f[:n] for f, n in zip(features, lengths, strict=True)])
        frames = frames[frames.mean(1) > -10]
        return frames.mean(0), frames.std(0)

    def _one(self) -> Utterance:
        source = self.decoded if self.decoded and self.rng.random() < 0.5 else self.plain
        return augment(self.rng.choice(source), self.setting, self.rng, self.noise)

    def _features(self, utterances: list[Utterance]) -> tuple[Tensor, Tensor]:
        from funasr.utils.load_utils import extract_fbank

        return extract_fbank([u.audio for u in utterances], frontend=self.frontend)

    def draw(self) -> Batch:
        """The next batch. Six are prepared at once, sorted by length so that little is padding, and drawn three
        times (features cost more than a training step on one core), with other bands masked."""
        if not self.ready:
            fresh = sorted((self._one() for _ in range(6 * self.size)), key=lambda u: len(u.audio))
            groups = [self._collate(fresh[i : i + self.size]) for i in range(0, len(fresh), self.size)]
            for _ in range(3):
                self.rng.shuffle(groups)
                self.ready += groups
        features, lengths, tokens, counts, spans = self.ready.pop()
        return mask_bands(features.clone(), self.rng), lengths, tokens, counts, spans

    def _collate(self, utterances: list[Utterance]) -> Batch:
        features, lengths = self._features(utterances)
        inside = torch.arange(features.size(1))[None] < lengths[:, None]
        features = (features - self.cmvn[0]) / self.cmvn[1] * inside[..., None]
        text_lengths = torch.tensor([len(u.tokens) for u in utterances])
        text = torch.full((len(utterances), max(1, int(text_lengths.max()))), IGNORE_ID)
        for b, utterance in enumerate(utterances):
            text[b, : len(utterance.tokens)] = torch.tensor(utterance.tokens, dtype=torch.long)
        return features, lengths.long(), text, text_lengths, [list(u.spans) for u in utterances]
