"""``talker-rl speaker list | add | compare``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError, StageError
from talker_rl.base.figures import count, written
from talker_rl.config import RunConfig, load_config
from talker_rl.records.prompt import Prompt
from talker_rl.shipped import split
from talker_rl.speakers.entry import (
    ENOUGH_SECONDS,
    BosChoice,
    Entry,
    Reference,
    choose_bos,
    cond_from_file,
    mixed_cond,
    reference_from_file,
    reference_from_wav,
)
from talker_rl.speakers.sound import Finding, Heard

HEARD_PROMPTS = 6
"""Texts of the micro world that a new speaker is heard with."""


_FILES = {"wav": "recording", "ref_mel": "file of a ref_mel", "cond": "file of a cond", "codes": "file of codes"}
"""Option -> what it names."""


def run(args: argparse.Namespace) -> int:
    """The exit code: 1 where a check failed (nothing is written then)."""
    if args.what == "compare":
        from talker_rl.speakers.compare import run as compare

        print(compare(args))
        return 0
    config = _config(args)
    return _list(args, config) if args.what == "list" else _add(args, config)


def _config(args: argparse.Namespace) -> RunConfig:
    files, overrides = split(args.config, args.overrides)
    return load_config(files, [*overrides, *([f"model.path={json.dumps(args.model)}"] if args.model else [])])


def _list(args: argparse.Namespace, config: RunConfig) -> int:
    from talker_rl.speech.qwen2_5_omni.checkpoint import speakers_of
    from talker_rl.speech.qwen2_5_omni.mel import HOP, SAMPLE_RATE

    rows = [
        {"name": name, "bos_token": e["bos_token"], "cond": list(e["cond"].shape), "ref_mel": list(e["ref_mel"].shape),
         "ref_seconds": e["ref_mel"].shape[1] * HOP / SAMPLE_RATE, "cond_norm": round(float(e["cond"].norm()), 3)}
        for name, e in sorted(speakers_of(config.model).items())
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'name':16} {'bos_token':>9}  {'cond':>9} {'norm':>7}  {'ref_mel':>13} {'seconds':>8}")
    for r in rows:
        print(f"{r['name']:16} {r['bos_token']:>9}  {str(r['cond']):>9} {r['cond_norm']:>7}  {str(r['ref_mel']):>13} "
              f"{r['ref_seconds']:>8.2f}")
    return 0


def _add(args: argparse.Namespace, config: RunConfig) -> int:
    from talker_rl.base.places import check_writable_folder, require_file
    from talker_rl.speakers.store import check_target, save
    from talker_rl.speech.locate import resolve_model_path
    from talker_rl.speech.qwen2_5_omni.checkpoint import speakers_of

    folder, out = resolve_model_path(config.model.path), Path(args.out).expanduser()
    check_target(out, folder, args.overwrite)
    if args.wavs:
        check_writable_folder(Path(args.wavs))
    for option in ("wav", "ref_mel", "codes"):
        if file := getattr(args, option):
            require_file(Path(file).expanduser(), _FILES[option], f"--{option.replace('_', '-')}")
    if args.cond and args.cond != "zero":
        require_file(Path(args.cond).expanduser(), _FILES["cond"], "--cond")
    speakers = speakers_of(config.model)
    if args.name in speakers:
        raise ConfigError(f"There is a speaker {args.name!r} already", where="--name", fix="choose another name")
    entry, reference, bos = new_entry(args, folder, speakers)
    everyone = {**speakers, args.name: entry}
    for level, text in _shape_findings(entry, reference, bos, speakers):
        print(f"{level:5} {text}")
    if args.dry_run:
        print(f"\n{out} would hold: {', '.join(sorted(everyone))}")
        return 0
    if not args.no_sound:
        failed = 0
        for level, text in _sound_findings(args, config, everyone):
            print(f"{level:5} {text}", flush=True)
            failed += level == "fail"
        if failed:
            print(f"\n{count(failed, 'check')} failed: nothing was written", file=sys.stderr)
            return 1
    save(everyone, out, folder)
    used = f"model.speakers={out}" if out.suffix == ".pt" else f"model.path={out}"
    print(f"\n{args.name} added: {out}\nuse it: {used}" + (
        "" if args.bos_from else "; then train the Talker on it, e.g. -c stages/3-speakers"))
    return 0


def new_entry(
    args: argparse.Namespace, folder: Path, speakers: dict[str, Entry]
) -> tuple[Entry, Reference, BosChoice | None]:
    """The entry that the options ask for; the look of its bos token, where that is not an old speaker's."""
    from talker_rl.speech.qwen2_5_omni.checkpoint import read_config

    reference = (reference_from_wav(args.wav, list(speakers.values()), args.seconds) if args.wav
                 else reference_from_file(args.ref_mel))
    old = next(iter(speakers.values()))["cond"]
    if args.cond_from:
        cond = mixed_cond(speakers, args.cond_from)
    else:
        cond = old * 0 if args.cond == "zero" else cond_from_file(args.cond, old.shape[1])
    if args.bos_from:
        if args.bos_from not in speakers:
            raise ConfigError(f"Unknown speaker {args.bos_from!r}", where="--bos-from",
                              fix=f"this checkpoint has: {', '.join(sorted(speakers))}")
        shared = speakers[args.bos_from]["bos_token"]
        return {"bos_token": shared, "cond": cond, "ref_mel": reference.mel}, reference, None
    taken = [e["bos_token"] for e in speakers.values()]
    bos = choose_bos(folder, read_config(folder), _tokens(folder), taken, args.bos_token)
    return {"bos_token": bos.token, "cond": cond, "ref_mel": reference.mel}, reference, bos


def _tokens(folder: Path) -> int:
    """Ids below it are the tokenizer's."""
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_tokenizer

    return len(load_tokenizer(folder))


def _shape_findings(
    entry: Entry, reference: Reference, bos: BosChoice | None, speakers: dict[str, Entry]
) -> Iterator[Finding]:
    mel, cond = entry["ref_mel"], entry["cond"]
    yield ("ok" if reference.seconds >= ENOUGH_SECONDS else "warn"), (
        f"ref_mel {list(mel.shape)}: {reference.seconds:.2f} s of speech"
        + (f", amplified by {written(reference.gain_db, '{:+.1f}')} dB to the level of the model's own"
           if reference.gain_db else "")
        + ("" if reference.seconds >= ENOUGH_SECONDS else f"; {ENOUGH_SECONDS:g} s or more describe a voice better"))
    yield from _range_finding(mel, speakers)
    norms = sorted(float(e["cond"].norm()) for e in speakers.values())
    norm = float(cond.norm())
    usual = 0.5 * norms[0] <= norm <= 2 * norms[-1]
    yield ("ok" if usual else "warn"), (
        f"cond {list(cond.shape)}: norm {norm:.2f}, the model's own {norms[0]:.2f} to {norms[-1]:.2f}"
        + ("" if usual else ": listen to the words"))
    if bos is None:
        yield "ok", f"bos_token {entry['bos_token']}: shared with an old speaker, so there is nothing to train"
    else:
        yield ("warn" if bos.faint else "ok"), (
            f"bos_token {bos.token}: its row is {bos.norm:.2f} times as long as the old speakers', cosine to the "
            f"nearest {bos.nearest:.2f}" + (": the Talker hardly sees it: try another" if bos.faint else ""))


def _range_finding(mel: Any, speakers: dict[str, Entry]) -> Iterator[Finding]:
    lows = [float(e["ref_mel"].min()) for e in speakers.values()]
    highs = [float(e["ref_mel"].max()) for e in speakers.values()]
    low, high = float(mel.min()), float(mel.max())
    strange = low < min(lows) - 3 or high > max(highs) + 3 or high < min(highs) - 3
    yield ("warn" if strange else "ok"), (
        f"ref_mel lies in {low:.1f} .. {high:.1f} nats, the model's own in {min(lows):.1f} .. {max(highs):.1f}"
        + (": is it a natural-log amplitude mel?" if strange else ""))


def _sound_findings(args: argparse.Namespace, config: RunConfig, everyone: dict[str, Entry]) -> Iterator[Finding]:
    from talker_rl.reward.asr.registry import build_recognizer
    from talker_rl.speakers import sound
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni

    sayer = _sayer(args, everyone)
    if args.codes:
        known = sound.read_codes(args.codes)
    else:
        known = sound.known_codes(config.model, sayer, _prompts(args, config, sayer), config.rollouts.sampling)
    token2wav = load_omni(config.model, parts=("token2wav",)).token2wav
    heard = sound.hear(token2wav, known, everyone[sayer], everyone[args.name], config.token2wav)
    asr = build_recognizer(config.reward.recognizer) if _has_recognizer(config) else None
    yield "ok", f"heard: {count(len(known), 'utterance')}, codes by {args.codes or sayer}"
    yield from sound.judge(heard, token2wav, args.name, everyone, asr)
    if asr is None:
        yield "warn", "words: not checked; name a recognizer (-c CONFIG with reward.recognizer)"
    if args.wavs:
        yield "ok", f"{count(_keep(heard, Path(args.wavs), args.name, sayer), 'sound file')} in {args.wavs}"


def _sayer(args: argparse.Namespace, everyone: dict[str, Entry]) -> str:
    """The old speaker whose codes are decoded: the first that lends cond, else the first."""
    lends = [part if part in everyone else part.rpartition(":")[0] for part in args.cond_from or ()]
    return next(name for name in [*lends, *sorted(everyone)] if name in everyone and name != args.name)


def _prompts(args: argparse.Namespace, config: RunConfig, sayer: str) -> list[Prompt]:
    from talker_rl.data.prompts import read_prompts
    from talker_rl.speakers.sound import prompts_for

    if config.model.path == "micro" and not args.say:  # its Talker knows 30 words
        own = read_prompts("micro:dev", limit=HEARD_PROMPTS).prompts
        return [replace(p, speaker=sayer, prompt_id="") for p in own]
    return prompts_for(sayer, args.say)


def _has_recognizer(config: RunConfig) -> bool:
    """A real checkpoint is not judged by the micro world's recognizer, which is only there by default."""
    return config.model.path == "micro" or "recognizer" in config.reward.model_fields_set


def _keep(heard: Heard, folder: Path, name: str, sayer: str) -> int:
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    try:
        for who, waves in ((sayer, heard.own), (name, heard.new)):
            for i, wave in enumerate(waves, 1):
                soundfile.write(str(folder / f"{i:02d}-{who}.wav"), wave, 24_000)
    except (OSError, soundfile.LibsndfileError) as error:
        raise StageError(f"Cannot write the sound: {error}", where=str(folder), fix="name another --wavs") from None
    return len(heard.own) + len(heard.new)
