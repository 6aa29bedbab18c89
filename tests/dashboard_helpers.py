"""Hand-made run and sweep folders in the formats that the stages write, with speech that was kept, so that pages can be
made of them without a model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from said import said

from talker_rl.base.text.tokens import normalize
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair, pair_id_of
from talker_rl.records.score import ScoreRow
from talker_rl.store.shards import ShardFolder

EOS = 8294
TEXTS = ("music mountain river bottle.", "太阳森林朋友太阳，咖啡森林海洋老师。", "the garden, the window.",
         "paper money & <b>tea</b>.")
HEARD = (["music", "mountain", "river"], list("太阳森林朋友太阳咖啡森林海洋老师"),
         ["the", "garden", "garden", "the", "window"], ["paper", "honey", "b", "tea", "b"])
"""Of the rejected side: a deletion, nothing wrong, an insertion, a substitution (the markup is read as words)."""


def tone(seconds: float, hertz: float = 220.0) -> bytes:
    """An Opus file."""
    sink = io.BytesIO()
    sound = 0.2 * np.sin(2 * np.pi * hertz * np.arange(round(24_000 * seconds)) / 24_000)
    soundfile.write(sink, sound.astype(np.float32), 24_000, format="OGG", subtype="OPUS")
    return sink.getvalue()


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False))


def write_run(
    folder: Path, names: Sequence[str] = ("dpo",), *, pairs: int = 6, diagnostics: bool = True, shift: float = 0.0
) -> Path:
    """A run folder: ``pairs`` pairs in turn of ``TEXTS`` (every third chosen is longer, the fifth rejected was cut),
    an evaluation, dev curves and diagnostics of each name."""
    write_json(folder / "manifest.json", {"format": 1, "stages": {}, "config": {
        "name": folder.name, "seed": 0, "model": {"path": "no such model"}, "token2wav": {},
        "train": dict.fromkeys(names, {})}})
    _write_pairs(folder, pairs)
    _shards(folder / "eval" / "base", [_utterance(i, 0, 1.0) for i in range(8)])
    for at, name in enumerate(names):
        ratio = 1.0 + shift + 0.02 * at
        _shards(folder / "eval" / name, [_utterance(i, i % 2, ratio) for i in range(8)])
        write_json(folder / "round1" / "choice" / name / "choice.json", {"round": 1, "step": 20, "checkpoints": [
            {"step": step, "n": 4, "wer": 0.3 - 0.002 * step + 0.01 * at, "pause_error": 0.2, "reward": 0.5,
             "duration_mean": 2.0 * ratio, "duration_ratio": 1.0 + (ratio - 1.0) * step / 20, "cap_hit_rate": 0.0}
            for step in (0, 10, 20)]})
        if diagnostics:
            write_diagnostics(folder / "diagnostics" / name, name, ratio)
    return folder


def write_sweep(folder: Path, variants: Sequence[str] = ("dpo", "ld_dpo_a0.5", "sft"), *, pairs: int = 6) -> Path:
    """A sweep folder with two arms, two seeds and a table; in the arm ``biased`` plain DPO drifts by 10 %."""
    write_json(folder / "sweep.json", {"name": "losses", "variants": dict.fromkeys(variants, {}), "seeds": [0, 1]})
    rows, claims = [], []
    for arm, drift in (("biased", 0.10), ("natural", 0.01)):
        names = [f"{variant}-s{seed}" for variant in variants for seed in (0, 1)]
        write_run(folder / "arms" / arm, names, pairs=pairs, shift=drift)
        rows.append(_row("base", arm, None, 0.25, 0.0))
        for at, variant in enumerate(variants):
            found = (0.20 + 0.01 * at, drift / (at + 1))
            rows += [_row(variant, arm, seed, *found, dpo=drift) for seed in (0, 1, None)]
            if variant != "dpo":
                holds = arm == "biased"
                claims.append({"arm": arm, "variant": variant, "claim": "drifts less than dpo", "seeds": [0, 1],
                               "holds": holds, "why": "both intervals" if holds else "seed 1 holds 0"})
    predicted = {"biased": _prediction(variants), "natural": {"variants": [], "note": "no times"}}
    write_json(folder / "ablation.json", {"rows": rows, "claims": claims, "pareto": [], "baseline": "dpo",
                                          "notes": ["hand-made"], "prediction": predicted})
    return folder


def _prediction(variants: Sequence[str]) -> dict[str, Any]:
    rho = {"rho": -0.75, "ci95": [-1.0, 0.25], "n": len(variants), "note": None}
    found = [{"variant": variant, "stop": -0.5 * at, "stop_seconds": 0.4 - at, "duration_ratio": 1.1 + 0.2 * at}
             for at, variant in enumerate(variants)]
    return {"variants": found, "stop": rho, "stop_seconds": rho | {"rho": -0.5}, "pairs": 200}


def _row(variant: str, arm: str, seed: int | None, wer: float, drift: float, dpo: float = 0.0) -> dict[str, Any]:
    base = variant == "base"
    return {"variant": variant, "arm": arm, "seed": seed, "n": 200, "prompts": 100, "wer": wer,
            "wer_ci95": [wer - 0.02, wer + 0.02], "wer_diff_base": None if base else wer - 0.25,
            "wer_diff_base_ci95": None if base else [wer - 0.27, wer - 0.23],
            "duration_ratio": 1 + drift, "duration_ratio_ci95": [1 + drift - 0.005, 1 + drift + 0.005], "drift": drift,
            "drift_vs_baseline": None if base or variant == "dpo" else drift - dpo,
            "drift_vs_baseline_ci95": None if base or variant == "dpo" else [drift - dpo - 0.01, drift - dpo + 0.01],
            "pause_error": 0.2, "cap_hit_rate": 0.0, "steps": 90, "train_seconds": 30.0}


def _utterance(i: int, errors: int, ratio: float) -> dict[str, Any]:
    return {"prompt_id": f"p{i % 4}", "candidate_id": f"p{i % 4}-{i // 4}", "seed": i // 4, "status": "ok",
            "wer": errors / 4, "substitutions": errors, "deletions": 0, "insertions": 0, "ref_words": 4,
            "duration": (2.0 + 0.1 * i) * ratio, "pause_error": 0.1, "cap_hit": 0.0, "max_inner_silence": 0.3,
            "repeated_ngram": 0.02, "transcript": "a b c d", "text": "a b c d"}


def _shards(folder: Path, rows: list[dict[str, Any]]) -> None:
    ShardFolder(folder, "test").write(0, rows)


def _write_pairs(folder: Path, count: int) -> None:
    candidates, scores, pairs = [], [], []
    kept = folder / "audio" / "scores"
    kept.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        prompt_id, text = f"{i:016x}", TEXTS[i % len(TEXTS)]
        lengths = {"chosen": 60 if i % 3 == 0 else 40, "rejected": 50}
        codes = {side: [i + 1] * n + [EOS] for side, n in lengths.items()}
        if i % 5 == 4:
            codes["rejected"].pop()
        for k, side in enumerate(lengths):
            name = f"{prompt_id}-{k}"
            stop = codes[side][-1] == EOS
            spoken = codes[side][:-1] if stop else codes[side]
            candidates.append(Candidate(prompt_id, name, "Ethan", i, spoken, EOS if stop else None,
                                        "eos" if stop else "max_tokens", [-0.1] * len(codes[side])))
            heard = HEARD[i % len(TEXTS)] if side == "rejected" else normalize(text).tokens
            spans = [(0.1 * j, 0.1 * j + 0.08) for j in range(len(heard))]
            scores.append(ScoreRow(prompt_id, name, "ok", 0.9 - 0.5 * k, {"wer": 0.25 * k}, heard, spans, "[]"))
            (kept / f"{name}.opus").write_bytes(tone(lengths[side] / 50, 220 + 30 * i + 10 * k))
        pairs.append(Pair(prompt_id, pair_id_of(prompt_id, codes["chosen"], codes["rejected"]), text, "Ethan",
                          f"{prompt_id}-0", f"{prompt_id}-1", said(codes["chosen"]),
                          said(codes["rejected"]), 0.9, 0.4, 0.5))
    for stage, records in (("rollouts", candidates), ("scores", scores), ("pairs", pairs)):
        ShardFolder(folder / stage, "test").write(0, records, type(records[0]) if records else None)


def anatomy_row(stop: float) -> dict[str, Any]:
    """The anatomy of a loss that pushes the chosen's stop by 0 and the rejected's by ``stop``."""
    return {"pairs": 4, "stop": stop, "stop_down": 4, "stop_seconds": 2 * stop,
            "push": {"chosen": {"right": 60.0, "substituted": 2.0, "pause_false": 3.0, "tail": 5.0, "stop": 0.0},
                     "rejected": {"right": -50.0, "inserted": -4.0, "beside_deleted": -2.0, "lead": -1.0,
                                  "between": -2.0, "tail": -3.0, "stop": stop}},
            "tokens": {"chosen": {}, "rejected": {}}, "past_common": {"chosen": 0.0, "rejected": 0.0}}


def write_diagnostics(folder: Path, name: str, ratio: float) -> None:
    """Diagnostics in which the implicit reward is exactly 2 per second."""
    fit = {"slope_per_second": 2.0, "intercept": -1.0, "r2": 0.9, "pearson": 0.95, "spearman": 0.9, "n": 8}
    within = {"n": 4, "reward_length_corr": 0.8, "sign_agreement": 0.75, "n_lengths_differ": 4, "accuracy": 0.75,
              "accuracy_chosen_longer": 1.0, "accuracy_chosen_shorter": 0.5, "n_chosen_longer": 2,
              "n_chosen_shorter": 2, "pick_shorter_accuracy": 0.5, "pick_longer_accuracy": 0.5}
    write_json(folder / "summary.json", {
        "variant": name, "beta": 0.1, "n_pairs": 4, "n_samples": 8,
        "implicit_reward": {"held_out": None, "train": fit, "samples": fit},
        "within_pairs": {"held_out": None, "train": within},
        "heatmap": {"chosen_edges": [1.0, 2.0, 3.0], "rejected_edges": [1.0, 2.0, 3.0],
                    "mean": [[-1.0, 2.0], [None, 0.5]], "count": [[3, 2], [0, 1]]},
        "margin_curves": [{"step": s, "subset": subset, "raw": 0.1 * s, "common": 0.05 * s, "n": 2}
                          for s in (0, 10, 20) for subset in ("all", "chosen_longer", "chosen_shorter")],
        "win_rate": {"raw": 0.6, "length_controlled": 0.55, "theta": 0.2, "coef_length": 0.4, "n": 8},
        "drift": [{"step": s, "duration_mean": 2.0, "duration_p50": 2.0, "duration_p95": 3.0, "seconds_per_unit": 0.3,
                   "ratio_to_reference": 1 + (ratio - 1) * s / 20, "kl_per_code": 0.001 * s, "wer": 0.3 - 0.002 * s,
                   "p_stop_at_base_stops": 0.9 - 0.04 * s, "n": 8,
                   "hazard": [10.0 ** (j - 9) * (0.9 - 0.04 * s) for j in range(10)]} for s in (0, 10, 20)],
        "step": 20, "conditions": {"kl_per_code": "its own tokens", "p_stop_at_base_stops": "where the base stopped",
                                   "hazard": "the base's last tokens"},
        "said": {side: {"words_over_time": {"seconds": [1.0, 2.0, 3.0], "said": [0.4, 0.9, end],
                                            "right": [0.4, 0.8, 0.9], "n": 8},
                        "loops": {"rate": end - 1, "words": 0.1, "n": 8}}
                 for side, end in (("trained", 1.25), ("base", 1.125))},
        "anatomy": {step: anatomy_row(push) for step, push in (("0", -1.0), ("20", -0.5))},
        "runaway": {"cap_hit_rate": 0.01, "p_eos_last": [10.0 ** (-9 + j) for j in range(10)], "early_eos_rate": 0.02,
                    "silence_share": 0.1, "repetition": 0.03, "below_p1": 0.015, "above_p99": 0.05, "n": 8},
        "limits": None, "reward_noise": None, "notes": ["held_out: no pairs were held out"]})
    points = []
    for step in (0, 20):
        for i in range(4):
            row: dict[str, Any] = {"step": step, "pair_id": str(i), "prompt_id": str(i), "held_out": False}
            for side, seconds in (("chosen", 1.0 + 0.2 * i), ("rejected", 1.1 + 0.1 * i)):
                row |= {f"{side}_seconds": seconds, f"{side}_codes": round(seconds * 50), f"{side}_reward": 0.5,
                        f"policy_{side}_logp": -50 + (20 * seconds - 10) * (step > 0), f"ref_{side}_logp": -50.0}
            points.append(row | {"margin_raw": 0.1, "margin_common": 0.05})
    samples = [{"prompt_id": str(i), "candidate_id": f"{i}-0", "step": 20, "seconds": 1.0 + 0.1 * i,
                "codes": 50 + 5 * i, "units": 8, "end_reason": "eos", "policy_logp": -50 + 10 * math.sin(i),
                "ref_logp": -50.0, "reward": 0.5, "wer": 0.1,
                "p_eos_last": [0.1] * 10, "p_eos_early": 0.01} for i in range(8)]
    for file, rows in (("pairs", points), ("samples", samples)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{file}.parquet")
