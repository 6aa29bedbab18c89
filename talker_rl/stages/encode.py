"""The verb ``encode``: recordings to codes, for families whose codec has an encoder.

Imports nothing heavy before it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import ConfigError, DataError
from talker_rl.base.figures import count

if TYPE_CHECKING:
    import numpy as np

    from talker_rl.config import RunConfig

HELP = "codes of recordings, to imitate (Qwen3-Omni)"
TEXT = """\
Recordings become rows {text, speaker, codes, seconds} of a .jsonl file: prompts.train and completions.file of a
training with train.data: file. The text of a recording lies beside it (clip.wav, clip.txt), or the recordings are named
by a .jsonl of {audio, text, speaker}. They are off-policy: imitate them, or mix them in; a preference for them over a
model's own samples is learned as a preference for another microphone."""
EXAMPLES = """\
talker-rl encode clips/*.wav --speaker Ethan --model Qwen/Qwen3-Omni-30B-A3B-Instruct --out codes.jsonl
  talker-rl encode clips.jsonl --model micro-qwen3 --out codes.jsonl --check 20    are they this Talker's codes?"""
LEAST_SECONDS, SILENT_DBFS = 0.16, -60.0


@dataclass(frozen=True)
class Recording:
    """A file of speech, and what it says."""

    file: Path
    text: str
    speaker: str


def add_options(command: argparse.ArgumentParser) -> None:
    """All of them but the configuration's."""
    command.add_argument("recordings", nargs="+", metavar="FILE", help="files of speech with a .txt beside each, or a "
                         ".jsonl of {audio, text, speaker}")
    command.add_argument("--model", metavar="PATH", help="whose codes: a folder, a hub name or micro-qwen3")
    command.add_argument("--encoder", metavar="PATH", help="folder or hub name of a Mimi, or a .safetensors of books "
                         "(default: kyutai/mimi; of micro-qwen3 its own)")
    command.add_argument("--speaker", metavar="NAME", help="of recordings that name none")
    command.add_argument("--out", metavar="FILE.jsonl", required=True, help="where the rows go")
    command.add_argument("--check", type=int, default=0, metavar="N", help="decode N of them again, hear both by the "
                         "evaluating recognizer, and encode the decoded: are they this Talker's codes?")
    command.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def verb(args: argparse.Namespace) -> int:
    """Encode and write; 1 where no recording could be used.

    Raises:
        ConfigError: the family has no encoder, or an option does not fit.
        DataError: a list of recordings cannot be read.
        StageError: the place to write to.
    """
    from talker_rl.base.disk import atomic_write
    from talker_rl.base.places import check_writable_file
    from talker_rl.base.progress import bar
    from talker_rl.speech.config import ModelConfig
    from talker_rl.speech.registry import codec_of, family_of

    if not args.model:
        raise ConfigError("Whose codes?", where="--model", fix="give a folder, a hub name or micro-qwen3")
    out, settings = Path(args.out), ModelConfig(path=args.model, device=args.device)
    check_writable_file(out)
    family = family_of(args.model)
    speakers = family.speakers(settings)
    found = list(_recordings(args.recordings, args.speaker, speakers))
    codec, encoder = codec_of(settings), family.encoder(settings, args.encoder)
    rows: list[dict[str, Any]] = []
    used: list[tuple[Recording, np.ndarray]] = []
    for one in bar(found, desc="encode", unit="file"):
        try:
            sound = _sound(one.file, codec.sample_rate)
        except DataError as error:
            print(f"left out: {one.file}: {error.what}", file=sys.stderr)
            continue
        [codes] = encoder.encode([sound])
        rows.append({"text": one.text, "speaker": one.speaker, "codes": [*codes, codec.stop], "codec": codec.name,
                     "seconds": codec.seconds(codes), "origin": one.file.name})
        used.append((one, sound))
    if not rows:
        print("no recording could be used", file=sys.stderr)
        return 1
    atomic_write(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{out}: {count(len(rows), 'recording')}, {sum(row['seconds'] for row in rows):.1f} s"
          + (f"; {len(found) - len(rows)} left out" if len(rows) < len(found) else ""))
    for line in _check(settings, encoder, rows[: args.check], used[: args.check]) if args.check else ():
        print(line, flush=True)
    return 0


def _recordings(given: Sequence[str], speaker: str | None, speakers: Sequence[str]) -> Iterator[Recording]:
    for name in given:
        file = Path(name).expanduser()
        if not file.is_file():
            raise DataError("There is no such recording", where=name, fix="check the path")
        if file.suffix == ".jsonl":
            yield from _listed(file, speaker, speakers)
            continue
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise DataError("What does this recording say?", where=name, fix=f"write {text.name} beside it, or list "
                            "recordings in a .jsonl of {audio, text, speaker}")
        yield Recording(file, text.read_text("utf-8").strip(), _speaker(speaker, speakers, name))


def _listed(file: Path, speaker: str | None, speakers: Sequence[str]) -> Iterator[Recording]:
    from talker_rl.base.text.files import raw_lines

    for number, line in enumerate(raw_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
            audio, text = file.parent / str(row["audio"]), str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"The line names no recording: {error}", where=where,
                            fix='write {"audio": "clip.wav", "text": "...", "speaker": "Ethan"}') from None
        yield Recording(audio, text, _speaker(row.get("speaker") or speaker, speakers, where))


def _speaker(name: str | None, speakers: Sequence[str], where: str) -> str:
    if name is None or name not in speakers:
        raise DataError(f"Who speaks? {name!r} is no speaker of the model" if name else "Who speaks?", where=where,
                        fix=f"--speaker, one of: {', '.join(speakers)}")
    return name


def _sound(file: Path, rate: int) -> np.ndarray:
    """One channel at the codec's rate.

    Raises:
        DataError: it cannot be read, or holds no speech.
    """
    import numpy as np
    import soundfile

    from talker_rl.base.sound import peak_level, resample

    try:
        channels, own = soundfile.read(str(file), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise DataError(f"it cannot be read as sound ({str(error).splitlines()[0]})", where=str(file)) from None
    if not np.isfinite(channels).all():
        raise DataError("it holds samples that are no numbers", where=str(file))
    if len(channels) < LEAST_SECONDS * own:
        raise DataError(f"it is {len(channels) / own:.2f} s long, which is no utterance", where=str(file))
    sound = resample(channels.mean(1), own, rate)
    if peak_level(sound, rate) < SILENT_DBFS:
        raise DataError("it is silent", where=str(file))
    return sound


def _check(settings: Any, encoder: Any, rows: list[dict[str, Any]], used: Any) -> Iterator[str]:
    """Whether the model speaks these codes: what a recognizer hears in recordings, and in what is decoded of their
    codes; and how much of the codes is found again in the latter, book by book."""
    from talker_rl.config import RunConfig
    from talker_rl.data.texts import detect_lang
    from talker_rl.reward.asr.registry import build_recognizer
    from talker_rl.speakers.sound import Known, word_error_rate
    from talker_rl.speech.protocol import Utterance
    from talker_rl.speech.registry import load

    decoder = load(settings, parts=("decoder",))
    codec = decoder.codec
    config: RunConfig = RunConfig.model_validate({})
    asr = build_recognizer(config.reward.evaluator)
    codes = [row["codes"][:-1] for row in rows]
    made = decoder.decode([Utterance(one, row["speaker"]) for one, row in zip(codes, rows, strict=True)])
    known = [Known(row["text"], detect_lang(row["text"]), one) for row, one in zip(rows, codes, strict=True)]
    before = word_error_rate(asr, known, [sound for _, sound in used], codec.sample_rate)
    after = word_error_rate(asr, known, made, codec.sample_rate)
    yield f"WER of {count(len(rows), 'recording')} {before:.1%}, of what the model speaks of their codes {after:.1%}"
    same, total = [0] * codec.groups, 0
    for one, again in zip(codes, encoder.encode(made), strict=True):
        frames = min(len(one), len(again)) // codec.groups
        total += frames
        for k in range(codec.groups):
            same[k] += sum(a == b for a, b in zip(one[k :: codec.groups][:frames], again[k :: codec.groups][:frames],
                                                  strict=True))
    yield "codes found again, by book: " + " ".join(f"{n / max(1, total):.0%}" for n in same)
    if after > before + 0.1:
        yield "warning: the model does not speak these codes: use another encoder, and don't train on them"

