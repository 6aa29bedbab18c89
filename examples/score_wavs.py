"""Score a folder of wavs against the texts they should say, with any recognizer: one CSV line per file.

    python examples/score_wavs.py FOLDER --recognizer SenseVoiceSmall > scores.csv
    python examples/score_wavs.py        (makes a folder of the micro model's speech first)

Beside NAME.wav lies NAME.txt with its text. The files' own sample rates are kept for the measures and resampled for the
recognizer. A file that cannot be judged has its reason in place of figures, and is never a number.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import soundfile

from talker_rl import RecognizerConfig, RewardConfig, ScoreItem, Scorer
from talker_rl.base.text.characters import clean_text
from talker_rl.base.text.language import detect_lang
from talker_rl.reward.asr.base import Failure

COLUMNS = ["wer", "pause_error", "pause_marks", "duration", "rate", "tail_silence", "max_inner_silence", "clipping"]


def items_of(folder: Path) -> list[ScoreItem]:
    """The folder's utterances, by name."""
    found = []
    for wav in sorted(folder.glob("*.wav")):
        text = clean_text(wav.with_suffix(".txt").read_text(encoding="utf-8-sig"))
        sound, rate = soundfile.read(wav, dtype="float32", always_2d=True)
        found.append(ScoreItem(wav.stem, text, sound.mean(axis=1), detect_lang(text), sample_rate=rate))
    return found


def main() -> int:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="wavs with their texts (left out: micro's speech)")
    parser.add_argument("--recognizer", default="micro:reward", help="name or folder of a recognizer (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or speak(Path(made))
        items = items_of(folder)
        if not items:
            sys.exit(f"{folder} holds no .wav: put NAME.wav and NAME.txt there")
        scorer = Scorer(RewardConfig(recognizer=RecognizerConfig(path=args.recognizer)))
        writer = csv.writer(sys.stdout)
        writer.writerow(["file", "reward", *COLUMNS, "heard", "failure"])
        for item, result in zip(items, scorer.score(items), strict=True):
            if isinstance(result, Failure):
                writer.writerow([item.id, "", *[""] * len(COLUMNS), "", f"{result.code}: {result.message}"])
                continue
            values = (result.components[name] for name in COLUMNS)
            writer.writerow([item.id, f"{result.value:.3f}", *("" if v is None else f"{v:.3g}" for v in values),
                             " ".join(result.transcript), ""])
    return 0


def speak(folder: Path) -> Path:
    """Two candidates of the micro model, and half a second of nothing."""
    from quickstart import items

    for item in items:
        soundfile.write(folder / f"{item.id[-1]}.wav", item.audio, item.sample_rate)
        (folder / f"{item.id[-1]}.txt").write_text(item.text)
    soundfile.write(folder / "silence.wav", 0.0 * items[0].audio[:12_000], 24_000)
    (folder / "silence.txt").write_text(items[0].text)
    return folder


if __name__ == "__main__":
    sys.exit(main())
