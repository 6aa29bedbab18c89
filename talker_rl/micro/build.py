"""``talker-rl micro build``: trains every part of the micro world from one seed and puts the checkpoint together.

Hours on two cores. A step whose files are there is skipped, so an interrupted build goes on where it stopped;
``--quick`` trains each part for a few steps, to see that the machinery turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from talker_rl.base.errors import StageError
from talker_rl.base.places import check_writable_folder
from talker_rl.micro.assemble import BUILD_DIR


@dataclass(frozen=True)
class Step:
    """One training, run in a process of its own."""

    name: str
    makes: str
    """The file that shows that it is finished."""
    command: tuple[str, ...]
    """Module and arguments after ``python -m``."""
    quick: tuple[str, ...]
    """Arguments added by ``--quick``."""


def steps(work: Path, seed: int) -> list[Step]:
    """Every training in order; each needs only those before it."""
    w, s = str(work), ("--seed", str(seed))
    audio, micro = "talker_rl.micro.train_audio", "talker_rl.micro"
    few = ("--steps", "4")
    asr = [
        Step(
            f"recognizer {name}",
            f"asr/{name}/model.pt",
            (f"{micro}.asr_train", name, "--out", f"{w}/asr/{name}", "--decoded", w),
            (*few, "--utterances", "60", "--decoded-utterances", "20"),
        )
        for name in ("reward", "eval")
    ]
    return [
        Step("codec", "codec.safetensors", (audio, "codec", "--out", w, *s), ()),
        Step("vocoder", "vocoder.safetensors", (audio, "vocoder", "--out", w, *s), few),
        Step("DiT", "dit.safetensors", (audio, "dit", "--out", w, *s), few),
        Step("Thinker", "thinker.json", (f"{micro}.thinker", "--build", w, *s), few),
        Step("Talker, clean", "talker_clean.json", (f"{micro}.talker", "clean", "--build", w, *s), few),
        Step("Talker, base", "talker_base.json", (f"{micro}.talker", "base", "--build", w, *s), few),
        *asr,
    ]


def qwen3_steps(work: Path, seed: int) -> list[Step]:
    """Likewise of the second model: sound, text and Talker. Recognizers and prompts are the first one's."""
    here, w, s = "talker_rl.micro.qwen3", ("--build", str(work)), ("--seed", str(seed))
    few, small = ("--steps", "4"), ("--sentences", "60")
    return [
        Step("books", "books.json", (f"{here}.codes", *w, *s), small),
        Step("code2wav", "code2wav.json", (f"{here}.sound", *w, *s), few),
        Step("Thinker", "thinker.json", (f"{here}.thinker", *w, *s), few),
        Step("sentences", "talker_data.json", (f"{here}.talker", "data", *w, *s), small),
        Step("Talker, clean", "talker_clean.json", (f"{here}.talker", "clean", *w, *s), few),
        Step("Talker, base", "talker_base.json", (f"{here}.talker", "base", *w, *s), few),
    ]


def build(
    out: Path, seed: int = 0, quick: bool = False, work: Path = BUILD_DIR, family: str = "qwen2_5_omni"
) -> Path:
    """Train what is missing in ``work``, then write the checkpoint folder ``out``.

    Raises:
        StageError: a step failed; its output is above.
    """
    from talker_rl.micro.prompts import write_prompts

    work.mkdir(parents=True, exist_ok=True)
    todo = FAMILIES[family](work, seed)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TALKER_RL_CACHE": str(work / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in [str(Path.cwd()), *sys.path] if p)
    for number, step in enumerate(todo, 1):
        label = f"[{number}/{len(todo)}] {step.name}"
        if (work / step.makes).exists():
            print(f"{label}: there already", flush=True)
            continue
        print(f"{label}: python -m {' '.join(step.command)}", flush=True)
        began = time.time()
        arguments = [*step.command, *(step.quick if quick else ())]
        done = subprocess.run([sys.executable, "-m", *arguments], env=environment)
        if done.returncode != 0 or not (work / step.makes).exists():
            raise StageError(
                f"building the {step.name} failed (exit {done.returncode})",
                where=str(work / step.makes),
                fix="see the output above; the same command goes on from here",
            )
        print(f"{label}: {time.time() - began:.0f} s", flush=True)
    if family == "qwen2_5_omni" and not (work / "prompts" / "eval.jsonl").exists():
        write_prompts(work / "prompts")
    return collect(out, work, seed, family)


FAMILIES = {"qwen2_5_omni": steps, "qwen3_omni": qwen3_steps}


def collect(out: Path, work: Path = BUILD_DIR, seed: int = 0, family: str = "qwen2_5_omni") -> Path:
    """Copy the finished parts of ``work`` into the checkpoint folder ``out``: omni/, asr/, prompts/, the codec; of the
    second model qwen3/ and its books."""
    out.mkdir(parents=True, exist_ok=True)
    if family == "qwen3_omni":
        from talker_rl.micro.qwen3.assemble import assemble as assemble_qwen3

        assemble_qwen3(out / "qwen3", work, seed)
        shutil.copyfile(work / "books.safetensors", out / "qwen3-books.safetensors")
        print(f"{out / 'qwen3'}: {sum(f.stat().st_size for f in (out / 'qwen3').rglob('*')) / 2**20:.1f} MiB")
        return out
    from talker_rl.micro.assemble import assemble

    assemble(out / "omni", work, seed)
    for name in ("asr/reward", "asr/eval", "prompts"):
        if (work / name).is_dir():
            shutil.copytree(work / name, out / name, dirs_exist_ok=True)
    shutil.copyfile(work / "codec.safetensors", out / "codec.safetensors")
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB", flush=True)
    return out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its options, and what it does."""
    parser.description = __doc__
    parser.add_argument("--family", choices=tuple(FAMILIES), default="qwen2_5_omni", help="which model")
    parser.add_argument("--out", type=Path, default=BUILD_DIR / "checkpoint", help="folder of the finished checkpoint")
    parser.add_argument("--work", type=Path, default=BUILD_DIR, help="folder of the parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps each: a test of the machinery, not a model")
    parser.add_argument("--collect", action="store_true", help="train nothing, only put finished parts together")


def verb(args: argparse.Namespace) -> int:
    """The command."""
    for folder in (args.out, args.work):
        check_writable_folder(folder)
    if args.collect:
        collect(args.out, args.work, args.seed, args.family)
    else:
        build(args.out, args.seed, args.quick, args.work, args.family)
    print(f"use it with TALKER_RL_MICRO_DIR={args.out}; check it with talker-rl micro check --folder {args.out}")
    return 0
