"""A worker process: `python -m talker_rl.reward.service.worker FD`. Decodes codes, or recognizes and scores speech.

It talks frames over the inherited socket FD: a specification comes in, a hello goes out once the models are loaded,
then one answer a batch. When the socket ends, so does the process, whatever it is doing. What is wrong with one item is
that item's failure; what a library raises over a batch is found by trying its items one by one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from talker_rl.base.errors import DataError, TalkerRLError
from talker_rl.records.codec import codec_named
from talker_rl.reward.asr.base import Failure, is_transient
from talker_rl.reward.asr.registry import RoutedRecognizer
from talker_rl.reward.config import RewardConfig
from talker_rl.reward.scorer import ScoreItem, Scorer, ScoreResult
from talker_rl.reward.service import frames
from talker_rl.reward.service.fingerprint import Parts, libraries_part, settings_parts
from talker_rl.reward.service.protocol import ItemResult
from talker_rl.speech.config import ModelConfig, Token2WavConfig
from talker_rl.speech.protocol import Utterance
from talker_rl.speech.registry import load

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
RATES = (8_000, 192_000)
"""Hz: sample rates that are taken."""

T = TypeVar("T")
R = TypeVar("R")


class Kind(Protocol):
    """What a worker can do."""

    def hello(self) -> dict[str, Any]:
        """Fingerprint parts, speakers."""
        ...

    def work(self, header: dict[str, Any], blobs: list[bytes]) -> frames.Frame:
        """Answer a batch."""
        ...


class Decoder:
    """Codes to speech. Batch: items of ``codes``, ``speaker``, ``seed``; answer: a float32 blob (or b"") an item."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.config = Token2WavConfig(**spec["token2wav"])
        self.generator = load(ModelConfig(**spec["model"]), parts=("decoder",))
        self.parts = settings_parts(RewardConfig(**spec["reward"]), self.config)

    def hello(self) -> dict[str, Any]:
        parts: Parts = {
            "token2wav": self.parts["token2wav"],
            "code": self.parts["code"],
            "model": self.generator.identity("decoder"),
            "decoder_libraries": libraries_part(self.generator.device.type),
        }
        return {"parts": parts, "speakers": list(self.generator.speakers)}

    def work(self, header: dict[str, Any], blobs: list[bytes]) -> frames.Frame:
        sounds = one_by_one(self._decode, header["items"])
        results = [_failure(s) if isinstance(s, Failure) else {} for s in sounds]
        return {"results": results}, [b"" if isinstance(s, Failure) else s.tobytes() for s in sounds]

    def _decode(self, items: Sequence[dict[str, Any]]) -> list[np.ndarray | Failure]:
        known = set(self.generator.speakers)
        able = [item for item in items if item["speaker"] in known]
        sounds = iter(self.generator.decode([Utterance(**item) for item in able], self.config))
        strange = f"no such speaker; there are: {', '.join(sorted(known))}"
        return [
            np.ascontiguousarray(next(sounds), dtype=np.float32)
            if item["speaker"] in known
            else Failure("unknown_speaker", strange)
            for item in items
        ]


class Judge:
    """Speech to scores. Batch: items as `ScoreItem` plus ``sound``: pcm (float32, the codec's rate), file or none."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.reward = RewardConfig(**spec["reward"])
        self.max_seconds = float(spec["max_seconds"])
        self.scorer = Scorer(self.reward)
        if isinstance(self.scorer.recognizer, RoutedRecognizer):
            self.scorer.recognizer.load()  # now, where it may take long, not in the middle of a batch
        self.parts = settings_parts(self.reward, Token2WavConfig(**spec["token2wav"]))

    def hello(self) -> dict[str, Any]:
        parts: Parts = {
            "reward": self.parts["reward"],
            "code": self.parts["code"],
            "recognizer": self.scorer.hearing(),
            "recognizer_libraries": libraries_part(self._devices()),
        }
        return {"parts": parts}

    def _devices(self) -> str:
        """Kinds of the devices that speech is heard on, of every language and of the aligner: a comma between two."""
        aligner = self.reward.pauses.aligner
        devices = [route.device for route in self.reward.recognizer.routes] or [self.reward.recognizer.device]
        devices += [aligner.device] if aligner else []
        return ",".join(sorted({device.partition(":")[0] for device in devices}))

    def work(self, header: dict[str, Any], blobs: list[bytes]) -> frames.Frame:
        items: list[ScoreItem | Failure] = []
        for row, blob in zip(header["items"], blobs, strict=True):
            items.append(self._item(dict(row), blob))
        able = [item for item in items if isinstance(item, ScoreItem)]
        scored = iter(one_by_one(self.scorer.score, able))
        results = [item if isinstance(item, Failure) else next(scored) for item in items]
        rows = [_result(row["id"], r) for row, r in zip(header["items"], results, strict=True)]
        return {"results": rows}, []

    def _item(self, row: dict[str, Any], blob: bytes) -> ScoreItem | Failure:
        kind = row.pop("sound")
        if kind == "none":
            return ScoreItem(audio=None, **row)
        if kind == "pcm":
            rate = codec_named(row["codec"]).sample_rate
            return ScoreItem(audio=np.frombuffer(blob, np.float32), sample_rate=rate, **row)
        sound = read_sound(blob, self.max_seconds)
        return sound if isinstance(sound, Failure) else ScoreItem(audio=sound[0], sample_rate=sound[1], **row)


def read_sound(data: bytes, max_seconds: float) -> tuple[np.ndarray, int] | Failure:
    """(samples, rate) of a mono sound file in memory; its header is believed only within the limits."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS:
                return Failure("bad_audio", f"{file.format} is not taken; send WAV, FLAC or OGG")
            if file.channels != 1:
                return Failure("bad_audio", f"{file.channels} channels; send one")
            if not RATES[0] <= file.samplerate <= RATES[1]:
                return Failure("bad_audio", f"{file.samplerate} Hz; send {RATES[0]} to {RATES[1]}")
            limit = round(max_seconds * file.samplerate)
            samples = file.read(limit + 1, dtype="float32")  # reads what is there, whatever the header says
            if len(samples) > limit:
                return Failure("too_long", f"more than {max_seconds:g} s of audio")
            return samples, file.samplerate
    except (soundfile.SoundFileError, ValueError, RuntimeError, OSError, MemoryError) as error:
        return Failure("bad_audio", f"not a readable sound file: {error}")


def one_by_one(function: Callable[[Sequence[T]], Sequence[R | Failure]], items: Sequence[T]) -> list[R | Failure]:
    """The function's results; where it raises over several items, each item's own: a poisoned one takes none along."""
    try:
        results = list(function(items)) if items else []
        if len(results) == len(items):
            return results
        error: Exception = RuntimeError(f"{len(results)} results for {len(items)} items")
    except Exception as caught:
        error = caught
    if len(items) > 1:
        return [result for item in items for result in one_by_one(function, [item])]
    own = isinstance(error, DataError)  # such as a code that the decoder has no row for
    message = error.what if isinstance(error, TalkerRLError) else f"{type(error).__name__}: {error}"
    return [Failure("bad_item" if own else "scorer_error", message, retryable=is_transient(error))]


def _failure(failure: Failure) -> dict[str, Any]:
    return {"code": failure.code, "message": failure.message, "retryable": failure.retryable}


def _result(item_id: str, result: ScoreResult | Failure) -> dict[str, Any]:
    """An `ItemResult` as plain data; one that breaks its rules (NaN for a reward) is a failure."""
    if isinstance(result, Failure):
        return {"id": item_id, "status": "failed", "error": _failure(result)}
    row = {
        "id": item_id,
        "status": "ok",
        "reward": result.value,
        "components": result.components,
        "transcript": result.transcript,
        "spans": result.spans,
        "alignment": json.loads(result.errors),
        "notes": result.notes,
    }
    try:
        json.dumps(row, allow_nan=False)
        ItemResult.model_validate(row)
    except ValueError as error:
        return {"id": item_id, "status": "failed", "error": _failure(Failure("bad_score", str(error)))}
    return row


KINDS: dict[str, Callable[[dict[str, Any]], Kind]] = {"decode": Decoder, "score": Judge}


def main(argv: Sequence[str]) -> None:
    """Serve batches until the socket ends."""
    faulthandler.enable()
    with contextlib.suppress(OSError):  # short of memory, the kernel ends this process and not the service
        Path("/proc/self/oom_score_adj").write_text("500")
    stream = socket.socket(fileno=int(argv[0])).makefile("rwb")
    inbox: queue.Queue[frames.Frame] = queue.Queue()
    threading.Thread(target=_listen, args=(stream, inbox), daemon=True).start()

    def answer(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        try:
            stream.write(frames.pack(header, blobs))
            stream.flush()
        except OSError:
            os._exit(0)  # the service is gone

    spec, _ = inbox.get()
    try:
        import torch

        torch.set_num_threads(1)  # sums in the same order as in the scoring stage
        kind = KINDS[spec["kind"]](spec)
        hello = kind.hello()
    except TalkerRLError as error:
        return answer({"refused": {"what": error.what, "where": error.where, "fix": error.fix}})
    answer({"hello": hello})
    while True:
        header, blobs = inbox.get()
        start = time.monotonic()
        reply, sounds = kind.work(header, blobs)
        answer(reply | {"seconds": time.monotonic() - start}, sounds)


def _listen(stream: Any, inbox: queue.Queue[frames.Frame]) -> None:
    while (frame := frames.read(stream)) is not None:
        inbox.put(frame)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
