"""Memory of a run's own process by the number of candidates: what does not hold them is flat.

Real stages on the micro model, one worker, each size in a process of its own: prompts, conditioning, rollouts and
scores (whose workers' answers are made up: random codes of real lengths, random scores), pairs, and a training of two
steps whose reference's log-probs are made up, too. Anonymous memory (RssAnon: pages of files don't count) is read every
20 ms. Beside the peak of each stage: what is held by intent, a few numbers and names a prompt or a pair, counted.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

EACH = 5
"""Candidates a prompt."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks driver_memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(_measure(args.one)))
        return 0
    found = [json.loads(subprocess.run([sys.executable, "-m", "benchmarks", "driver_memory", "--one", str(n)],
                                       stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
             for n in args.candidates]
    stages = list(found[0]["peaks"])
    print("| candidates | prompts | pairs | " + " | ".join(f"{s}, MiB" for s in stages) + " | names and numbers, MiB |")
    print("|" + "---|" * (len(stages) + 4))
    for one in found:
        print(f"| {one['candidates']:,} | {one['prompts']:,} | {one['pairs']:,} | "
              + " | ".join(f"{one['peaks'][s]:.0f}" for s in stages) + f" | {one['index']:.1f} |")
    for before, after in zip(found[:-1], found[1:], strict=True):
        ratios = ", ".join(f"{s} {after['peaks'][s] / before['peaks'][s]:.2f}" for s in stages)
        print(f"{after['candidates']:,} against {before['candidates']:,}: {ratios}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


class Peak:
    """The most anonymous memory of this process while a block runs, in MiB."""

    def __enter__(self) -> Peak:
        self.mib, self._over = _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.mib = max(self.mib, _anonymous())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def _measure(candidates: int) -> dict[str, Any]:
    """Peaks by stage for so many candidates."""
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), candidates // EACH, candidates)


def _measured(folder: Path, prompts: int, candidates: int) -> dict[str, Any]:
    import torch

    from talker_rl.base.processes import WorkerPool
    from talker_rl.config import load_data
    from talker_rl.rounds import Round
    from talker_rl.stages import conditioning, pairs, scores, train, worker
    from talker_rl.stages import prompts as prompts_stage
    from talker_rl.stages.choice import start_of
    from talker_rl.stages.context import Context
    from talker_rl.store.run_dir import RunDir

    torch.set_num_threads(1)
    texts = _write_prompts(folder, prompts)
    config = load_data({
        "name": "memory", "workers": 1, "model": {"path": "micro", "device": "cpu"}, "token2wav": {"preset": "reward"},
        "prompts": {"train": str(texts), "dev": "micro:dev", "eval": "micro:eval", "limit": {"dev": 5, "eval": 5}},
        "rollouts": {"num_candidates": EACH, "shard_size": 16}, "audio": {"keep": "none"},
        "pairs": {"margin": 0.1, "max_pairs_per_prompt": 3, "strategy": "all_margin"},
        "train": {"loss": {"type": "dpo", "beta": 0.1}, "lora": {"r": 8, "lora_alpha": 16},
                  "args": {"max_steps": 2, "per_device_train_batch_size": 8, "save_steps": 2}},
    }, where="benchmark")
    peaks: dict[str, float] = {}
    worker.work = _made_up  # type: ignore[assignment]
    _reference_made_up()
    with RunDir(folder / "run") as run, WorkerPool(1) as pool:
        ctx = Context(config, run, pool, quiet=True)
        run.record_command(config.resolved(), [], "cpu")
        for name, stage in {
            "prompts": lambda: prompts_stage.make(ctx), "conditioning": lambda: conditioning.make(ctx),
            "rollouts and scores": lambda: scores.run_with_rollouts(ctx, Round(1)),
            "pairs": lambda: pairs.make(ctx, Round(1)),
            "training": lambda: train.train_all(pool, [train.Training(ctx, v, Round(1), *start_of(ctx, Round(1), v))
                                                       for v in config.variants]),
        }.items():
            with Peak() as peak:
                stage()
            peaks[name] = peak.mib
            print(f"{candidates}: {name} {peak.mib:.0f} MiB", file=sys.stderr, flush=True)
        made = run.stages["pairs"]["counts"]["pairs"]
    # a prompt: its id in two sets and a dictionary, its conditioning's hash and file; a pair: two keys of 40 bytes
    return {"candidates": candidates, "prompts": prompts, "pairs": made, "peaks": peaks,
            "index": (prompts * 700 + made * 80) / 2**20}


def _write_prompts(folder: Path, count: int) -> Path:
    """Texts of the micro corpus's words, all different."""
    words = "the old man went down to see his friend near a small house by river".split()
    draw, file = random.Random(0), folder / "prompts.jsonl"
    speakers = ("Chelsie", "Ethan")
    with file.open("w") as out:
        for i in range(count):
            text = " ".join(draw.choice(words) for _ in range(8)) + f" {i}."
            out.write(json.dumps({"prompt_id": f"p{i:07d}", "text": text, "lang": "en", "speaker": speakers[i % 2]})
                      + "\n")
    return file


def _made_up(task: Any) -> Any:
    """What a worker would answer, at once."""
    from talker_rl.records.candidate import Candidate
    from talker_rl.records.score import ScoreRow
    from talker_rl.stages.worker import Made

    if task.sampling is not None:
        return Made([_candidate(Candidate, prompt, k, seed) for prompt, seeds in
                     zip(task.sampling.prompt_ids, task.sampling.seeds, strict=True) for k, seed in enumerate(seeds)])
    text = {p.prompt_id: p.text.split() for p in task.judging.prompts}
    return Made(scores=[_score(ScoreRow, c, text[c.prompt_id]) for c in task.candidates])


def _candidate(kind: Any, prompt: str, k: int, seed: int) -> Any:
    draw = random.Random(seed)
    steps = draw.randint(120, 220)
    logps = [-draw.random() for _ in range(steps + 1)]
    return kind(prompt, f"{prompt}-{k}", "Chelsie", seed, [draw.randrange(8000) for _ in range(steps)], 8294, "eos",
                logps, logps)


def _score(kind: Any, candidate: Any, words: list[str]) -> Any:
    draw = random.Random(candidate.seed + 1)
    reward = draw.random()
    spans = [(0.3 * i, 0.3 * i + 0.25) for i in range(len(words))]
    return kind(candidate.prompt_id, candidate.candidate_id, "ok", reward, {"wer": 1 - reward}, words, spans, "[]")


def _reference_made_up() -> None:
    """Forward passes without gradients answer at once: of 100,000 candidates they would take an hour."""
    import torch

    from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy

    real = TalkerPolicy.logps

    def logps(self: Any, batch: Any, *more: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            return real(self, batch, *more, **named)
        return torch.full(batch.mask_ST.shape, -1.0)

    TalkerPolicy.logps = logps  # type: ignore[method-assign]
