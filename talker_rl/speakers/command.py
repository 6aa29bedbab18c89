"""``talker-rl speaker list | add | compare``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.base.findings import Finding
from talker_rl.base.places import SHIPPED_MODELS
from talker_rl.config import RunConfig, load_config
from talker_rl.records.prompt import Prompt
from talker_rl.report.columns import columns
from talker_rl.shipped import split
from talker_rl.speakers.sound import Heard
from talker_rl.speech.protocol import NewSpeaker
from talker_rl.speech.registry import family_of

HEARD_PROMPTS = 6
"""Texts of the micro world that a new speaker is heard with."""


_FILES = {"wav": "recording", "ref_mel": "file of a ref_mel", "cond": "file of a cond", "codes": "file of codes"}
"""Option -> what it names."""


def verb(args: argparse.Namespace) -> int:
    """The exit code: 1 where a check failed (nothing is written then)."""
    if args.what == "compare":
        from talker_rl.speakers.compare import verb as compare

        print(compare(args))
        return 0
    config = _config(args)
    return _list(args, config) if args.what == "list" else _add(args, config)


def _config(args: argparse.Namespace) -> RunConfig:
    files, overrides = split(args.config, args.overrides)
    return load_config(files, [*overrides, *([f"model.path={json.dumps(args.model)}"] if args.model else [])])


def _list(args: argparse.Namespace, config: RunConfig) -> int:
    rows = family_of(config.model.path).speaker_rows(config.model)
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    if "bos_token" not in rows[0]:  # a family whose speakers are told in a few words
        print("\n".join(columns([tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows)])))
        return 0
    print(f"{'name':16} {'bos_token':>9}  {'cond':>9} {'norm':>7}  {'ref_mel':>13} {'seconds':>8}")
    for r in rows:
        print(f"{r['name']:16} {r['bos_token']:>9}  {str(r['cond']):>9} {r['cond_norm']:>7}  {str(r['ref_mel']):>13} "
              f"{r['ref_seconds']:>8.2f}")
    return 0


def _add(args: argparse.Namespace, config: RunConfig) -> int:
    from talker_rl.base.places import check_writable_folder, require_file

    out, family = Path(args.out).expanduser(), family_of(config.model.path)
    family.check_speakers_target(config.model, out, args.overwrite)
    if args.wavs:
        check_writable_folder(Path(args.wavs))
    for option in ("wav", "ref_mel", "codes"):
        if file := getattr(args, option):
            require_file(Path(file).expanduser(), _FILES[option], f"--{option.replace('_', '-')}")
    if args.cond and args.cond != "zero":
        require_file(Path(args.cond).expanduser(), _FILES["cond"], "--cond")
    new: NewSpeaker = family.new_speaker(config.model, args)
    for level, text in new.look():
        print(f"{level:5} {text}")
    if args.dry_run:
        print(f"\n{out} would hold: {', '.join(new.names)}")
        return 0
    if not args.no_sound:
        failed = 0
        for level, text in _sound_findings(args, config, new):
            print(f"{level:5} {text}", flush=True)
            failed += level == "fail"
        if failed:
            print(f"\n{count(failed, 'check')} failed: nothing was written", file=sys.stderr)
            return 1
    used = new.save(out)
    print(f"\n{args.name} added: {out}\nuse it: {used}" + (
        "; then train the Talker on it, e.g. -c stages/3-speakers" if new.trained else ""))
    return 0


def _sound_findings(args: argparse.Namespace, config: RunConfig, new: NewSpeaker) -> Iterator[Finding]:
    from talker_rl.reward.asr.registry import build_recognizer
    from talker_rl.speakers import sound

    # the old speaker whose codes are decoded: the first that lends a part of the voice, else the first
    sayer = next(name for name in [*new.lenders(args), *new.names] if name != args.name)
    if args.codes:
        known = sound.read_codes(args.codes)
    else:
        known = sound.known_codes(config.model, sayer, _prompts(args, config, sayer), config.rollouts.sampling)
    decoder = new.decoder()
    heard = sound.hear(decoder, known, sayer, args.name, config.token2wav)
    asr = build_recognizer(config.reward.recognizer) if _has_recognizer(config) else None
    yield "ok", f"heard: {count(len(known), 'utterance')}, codes by {args.codes or sayer}"
    finite = True
    for finding in sound.judge(heard, asr):
        finite = finite and not (finding[0] == "fail" and finding[1].startswith("samples"))
        yield finding
    if finite:
        yield from new.likeness(decoder, heard.new)
    if asr is None:
        yield "warn", "words: not checked; name a recognizer (-c CONFIG with reward.recognizer)"
    if args.wavs:
        yield "ok", f"{count(_keep(heard, Path(args.wavs), args.name, sayer), 'sound file')} in {args.wavs}"


def _prompts(args: argparse.Namespace, config: RunConfig, sayer: str) -> list[Prompt]:
    from talker_rl.data.prompts import read_prompts
    from talker_rl.speakers.sound import prompts_for

    if config.model.path in SHIPPED_MODELS and not args.say:  # its Talker knows 30 words
        own = read_prompts("micro:dev", limit=HEARD_PROMPTS).prompts
        return [replace(p, speaker=sayer, prompt_id="") for p in own]
    return prompts_for(sayer, args.say)


def _has_recognizer(config: RunConfig) -> bool:
    """A real checkpoint is not judged by the micro world's recognizer, which is only there by default."""
    return config.model.path in SHIPPED_MODELS or "recognizer" in config.reward.model_fields_set


def _keep(heard: Heard, folder: Path, name: str, sayer: str) -> int:
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    try:
        for who, waves in ((sayer, heard.own), (name, heard.new)):
            for i, wave in enumerate(waves, 1):
                soundfile.write(str(folder / f"{i:02d}-{who}.wav"), wave, heard.codec.sample_rate)
    except (OSError, soundfile.LibsndfileError) as error:
        raise StageError(f"Cannot write the sound: {error}", where=str(folder), fix="name another --wavs") from None
    return len(heard.own) + len(heard.new)
