"""Forced alignment by FunASR (`fa-zh`): when each token of a given text is said, as a recognizer cannot tell.

A recognizer times what it heard. For the pauses of a text one wants the onsets of what should have been said; an
aligner gives them, for whatever it is asked: where a token was not said, its time means nothing, so the pause score
uses the aligner's times only where the recognizer heard both tokens of a boundary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from talker_rl.base.errors import CheckpointError
from talker_rl.base.figures import count
from talker_rl.reward.asr.base import SAMPLE_RATE, Failure, file_fingerprint, is_transient, torch_threads, trim
from talker_rl.reward.asr.funasr_loading import open_model
from talker_rl.reward.asr.names import REQUIRED, model_folder
from talker_rl.reward.config import AlignerConfig

Span = tuple[float, float]


class Aligner:
    """A FunASR `MonotonicAligner` folder.

    Raises:
        CheckpointError: folder or file missing, weights missing, or a model that is no aligner.
        ConfigError: the device is not there, or funasr is not installed.
    """

    def __init__(self, config: AlignerConfig) -> None:
        self.config = config
        self.folder = model_folder(config.path, REQUIRED["aligner"])
        self._opened = open_model(self.folder, config.device, config.threads)
        if self._opened.kind != "MonotonicAligner":
            raise CheckpointError(f"a {self._opened.kind} aligns no text", where=str(self.folder),
                                  fix="use fa-zh, or another folder of a MonotonicAligner")
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        """Changes with model files, settings and the version of FunASR."""
        return file_fingerprint("aligner", self.folder, self.config.identity())

    def knows(self, lang: str) -> bool:
        """Whether it was trained for this language."""
        return lang in self.config.languages

    def align(self, audio: np.ndarray, tokens: Sequence[str]) -> list[Span] | Failure:
        """(start, end) in seconds of each token of the text in the sound.

        Args:
            audio: (samples,) float32 at 16 kHz that passed `check_audio`.
            tokens: the reference's tokens; one that its vocabulary lacks is aligned as unknown speech.
        """
        audio, offset = trim(audio, SAMPLE_RATE, self.config.silence_dbfs, self.config.trim_keep_seconds)
        pieces = [self._pieces(token) for token in tokens]
        flat = [piece for group in pieces for piece in group]
        try:
            with self._lock, torch_threads(self.config.threads):
                times = self._times(audio, flat)
        except (RuntimeError, IndexError, ValueError) as error:
            return Failure("aligner_error", f"{type(error).__name__}: {error}", retryable=is_transient(error))
        if len(times) != len(flat):
            return Failure("aligner_error", f"{count(len(times), 'time')} for {count(len(flat), 'piece')}")
        ends = np.cumsum([len(group) for group in pieces])
        return [(offset + times[end - len(group)][0], offset + times[end - 1][1])
                for group, end in zip(pieces, ends, strict=True)]

    def _pieces(self, token: str) -> list[str]:
        """The vocabulary's pieces of a token (never none); a word is split by the folder's seg_dict."""
        return self._opened.tokenizer.text2tokens(token) or ["<unk>"]

    def _times(self, audio: np.ndarray, pieces: list[str]) -> list[Span]:
        """Spans of the pieces. The network is asked directly: `generate` would open a text that is a path's name."""
        import torch
        from funasr.utils.load_utils import extract_fbank
        from funasr.utils.timestamp_tools import ts_prediction_lfr6_standard

        opened: Any = self._opened
        model, device = opened.auto.model, opened.auto.kwargs["device"]
        sound = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            speech, lengths = extract_fbank([sound], data_type="sound", frontend=opened.frontend)
            states, lengths = model.encode(speech.to(device), lengths.to(device))
            # One firing more than pieces: the last one closes the last piece.
            count = torch.tensor([len(pieces) + 1], device=states.device)
            _, _, weights, peaks = model.calc_predictor_timestamp(states, lengths, token_num=count)
            frames = int(lengths[0]) * model.predictor.upsample_times
            _, times = ts_prediction_lfr6_standard(weights[0][:frames], peaks[0][:frames], list(pieces))
        scale = opened.time_scale / 1000
        return [(max(0.0, start * scale), max(0.0, end * scale)) for start, end in times]
