"""espeak-ng by ctypes: one clause in, speech and true word onsets out.

espeak's output depends on the history of its calls (its noise sources keep state) and, for some voices, on
the clock. So every clause is synthesized in a fork of a process that has done nothing but initialize the
library, with a fixed seed: the same clause always gives the same samples, whatever was rendered before.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

ESPEAK_RATE = 22_050
"""Samples per second of what espeak-ng renders."""

_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT = 2, 0x1, 0x8000  # synchronous: no thread that a fork would lose
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_EVENT_END, _EVENT_PHONEME = 0, 7


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """What espeak said: samples (int16, 22.05 kHz) and the onset of each word in seconds."""

    samples: np.ndarray
    onsets: list[float]


class Espeak:
    """The library of the ``espeakng-loader`` package, initialized once in this process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        rate = self._lib.espeak_Initialize(
            _SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _PHONEME_EVENTS | _DONT_EXIT
        )
        if rate != ESPEAK_RATE:
            raise RuntimeError(f"espeak-ng could not start (espeak_Initialize returned {rate})")
        self._chunks: list[bytes] = []
        self._phonemes: list[tuple[int, int, bytes]] = []  # (character position, ms, name)
        self._callback = _CALLBACK(self._receive)  # kept alive: C holds no reference
        self._lib.espeak_SetSynthCallback(self._callback)
        self._start_server()

    def _receive(self, wave, count: int, events) -> int:
        if wave and count > 0:
            self._chunks.append(ctypes.string_at(wave, 2 * count))
        i = 0
        while events[i].type != _EVENT_END:
            e = events[i]
            if e.type == _EVENT_PHONEME:
                self._phonemes.append((e.text_position - 1, e.audio_position, bytes(e.id.string)))
            i += 1
        return 0

    def _say_here(self, voice: str, rate: int, words: tuple[str, ...]) -> Speech:
        self._chunks, self._phonemes = [], []
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # the breath of some voices is seeded by the clock
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._lib.espeak_SetParameter(_PARAMETER_RATE, rate, 0)
        text = " ".join(words)
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
        samples = np.frombuffer(b"".join(self._chunks), np.int16)
        onsets: list[float] = []
        start = 0
        for word in words:  # espeak reports characters (cmn: every one is a "word"), so find ours by position
            inside = [
                ms
                for position, ms, name in self._phonemes
                if start <= position < start + len(word) and not name.startswith(b"_")  # "_:" and the like are pauses
            ]
            if not inside:
                raise RuntimeError(f"espeak-ng spoke no phoneme of {word!r} with voice {voice!r}")
            onsets.append(inside[0] / 1000)
            start += len(word) + 1
        return Speech(samples, onsets)

    def say(self, voice: str, rate: int, words: tuple[str, ...]) -> Speech:
        """Speak ``words``; the result depends on the arguments only. Raises RuntimeError with what espeak lacks."""
        request = json.dumps([voice, rate, list(words)]).encode()
        self._requests.write(struct.pack("<i", len(request)) + request)
        self._requests.flush()
        count, samples = struct.unpack("<ii", self._answers.read(8))
        if count < 0:
            raise RuntimeError(f"espeak-ng: {self._answers.read(samples).decode()}")
        onsets = list(struct.unpack(f"<{count}d", self._answers.read(8 * count)))
        return Speech(np.frombuffer(self._answers.read(2 * samples), np.int16), onsets)

    def _start_server(self) -> None:
        """Fork a child that stays as it is now (small, no synthesis done) and forks once more for every clause."""
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        if os.fork() == 0:
            try:
                os.close(request_write)
                os.close(answer_read)
                self._serve(os.fdopen(request_read, "rb"), answer_write)
            finally:
                os._exit(0)
        os.close(request_read)
        os.close(answer_write)
        self._requests, self._answers = os.fdopen(request_write, "wb"), os.fdopen(answer_read, "rb")

    def _serve(self, requests: BinaryIO, answer_fd: int) -> None:
        """Until the parent closes its end: (length, JSON) -> (word count, samples, onsets, int16) by a grandchild."""
        while head := requests.read(4):
            voice, rate, words = json.loads(requests.read(struct.unpack("<i", head)[0]))
            child = os.fork()
            if child == 0:
                with os.fdopen(answer_fd, "wb", closefd=False) as out:
                    try:
                        speech = self._say_here(voice, rate, tuple(words))
                        out.write(struct.pack("<ii", len(words), len(speech.samples)))
                        out.write(struct.pack(f"<{len(words)}d", *speech.onsets) + speech.samples.tobytes())
                    except (RuntimeError, ValueError) as error:
                        message = str(error).encode()
                        out.write(struct.pack("<ii", -1, len(message)) + message)
                os._exit(0)
            os.waitpid(child, 0)
