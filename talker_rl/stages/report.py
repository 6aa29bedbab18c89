"""Report: collect what the page shows from the finished stages, decode what is listened to, write one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import yaml

from talker_rl.base.disk import read_json
from talker_rl.base.figures import count
from talker_rl.base.names import folder_name, model_name, without_places
from talker_rl.config import RunConfig
from talker_rl.records.candidate import Candidate
from talker_rl.records.evaluation import EvalRow
from talker_rl.records.pair import Completion, Pair
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import from_row
from talker_rl.records.score import ScoreRow
from talker_rl.report import charts
from talker_rl.report.clips import spaced
from talker_rl.report.html import embedded
from talker_rl.report.model import Clip, Comparison, ReportData
from talker_rl.report.page import write_report
from talker_rl.report.strip import strip_of, wave_of
from talker_rl.report.transcript import alignment_of
from talker_rl.reward.recognizer_config import recognizer_name
from talker_rl.rounds import Round, choice_stage, rounds_of
from talker_rl.speech.registry import codec_of
from talker_rl.stages import online_report, worker
from talker_rl.stages.context import Context
from talker_rl.stages.evaluate import best_variant, eval_candidates, eval_rows
from talker_rl.stages.inputs import model_input
from talker_rl.stages.stage import Stage, Step


def make(ctx: Context) -> ReportData:
    """Write ``report/index.html``; returns what it shows."""
    data = collect(ctx)
    _fit(data, ctx.config.report.max_mib)
    write_report(data, ctx.run.path / "report" / "index.html", audio_format="opus")
    ctx.say(f"report: {ctx.run.path / 'report' / 'index.html'}")
    return data


def collect(ctx: Context) -> ReportData:
    """The comparison of base with the variant that was best on dev."""
    from talker_rl.train.callbacks import read_log

    variant = best_variant(ctx)
    base, trained = eval_rows(ctx, "base"), eval_rows(ctx, variant)
    choice = read_json(ctx.run.path / choice_stage(variant, ctx.config.iterations) / "choice.json")
    pairs: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    for index in range(1, ctx.config.iterations + 1):
        for round_ in rounds_of(ctx.config.variants, index):
            if round_.variant in (None, variant):
                data = ctx.config.variants[variant].data
                if data == "online":
                    continue
                stage = round_.data_stage(data)
                counts = ctx.run.stages[stage]["counts"]
                if data is None:
                    pairs += ctx.shards(stage).all_rows(["margin", "chosen_seconds", "rejected_seconds"])
                for reason, count in counts["no_pair" if data is None else "no_completion"].items():
                    skipped[reason] = skipped.get(reason, 0) + count
    log = read_log(ctx.run.path / "train" / variant / "log.jsonl")
    online = ctx.config.variants[variant].data == "online"
    return ReportData(
        title=ctx.config.report.title or f"Run {ctx.config.name}",
        summary=read_json(ctx.run.path / "eval" / "summary.json"),
        base_rows=base,
        trained_rows=trained,
        train_log=log,
        dev_log=choice["checkpoints"],
        pairs=spaced(pairs, charts.MAX_POINTS),
        skipped={reason: count for reason, count in skipped.items() if count},
        before_after=_before_after(ctx, variant, base, trained),
        pair_clips=_trained_on(ctx, variant),
        online=online_report.figures(ctx, variant, log) if online else None,
        groups=_groups(ctx, variant) if online else {},
        facts=_facts(ctx, variant, choice),
        config_yaml=yaml.safe_dump(without_places(ctx.config.resolved()), sort_keys=False, allow_unicode=True),
    )


def _before_after(ctx: Context, variant: str, base: list[dict], trained: list[dict]) -> list[Comparison]:
    """Half of the examples are evenly spaced, half are utterances that came out differently; none is hand-picked."""
    after = {(r["prompt_id"], r["seed"]): r for r in trained if r["status"] == "ok"}
    both = [(r, after[r["prompt_id"], r["seed"]]) for r in base
            if r["status"] == "ok" and (r["prompt_id"], r["seed"]) in after]
    changed = [pair for pair in both if pair[0]["transcript"] != pair[1]["transcript"]]
    count = ctx.config.report.before_after
    shown = spaced(changed, count // 2)
    shown += spaced([pair for pair in both if pair not in shown], count - len(shown))
    rows = {side: {c["candidate_id"]: c for c in eval_candidates(ctx, side)} for side in ("base", variant)}
    sounds = [
        _decode(ctx, ctx.prompts("eval"), [from_row(Candidate, rows[side][pair[i]["candidate_id"]]) for pair in shown])
        for i, side in enumerate(("base", variant))
    ]
    return [
        Comparison(pair[0]["text"], pair[0]["speaker"], [
            _clip(ctx, label, sounds[i][row["candidate_id"]], row["text"], row["transcript"].split(), _spans(row),
                  f"WER {row['wer']:.2f} · {row['duration']:.1f} s")
            for i, (label, row) in enumerate(zip(("before", "after"), pair, strict=True))
        ])
        for pair in shown
    ]


def _trained_on(ctx: Context, variant: str) -> list[Comparison]:
    """Evenly spaced records of the first round: pairs, chosen beside rejected, or completions that were sampled. (Given
    codes were judged by nobody, so there is nothing to show beside them.)"""
    data, first = ctx.config.variants[variant].data, rounds_of(ctx.config.variants, 1)[0]
    if data in ("file", "online"):
        return []
    folder = ctx.shards(first.data_stage(data))
    sides: list[tuple[Any, list[tuple[str, str, float | None, float]]]]
    if data is None:
        sides = [(p, [("chosen", p.chosen_id, p.chosen_reward, p.chosen_seconds),
                      ("rejected", p.rejected_id, p.rejected_reward, p.rejected_seconds)])
                 for p in spaced(folder.records(Pair), ctx.config.report.pairs)]
    else:
        sides = [(c, [("imitated", c.origin, c.reward, c.seconds)])
                 for c in spaced(folder.records(Completion), ctx.config.report.pairs)]
    wanted = {candidate for _, clips in sides for _, candidate, _, _ in clips}
    found = ctx.shards("rollouts").where("candidate_id", wanted, Candidate)
    scores = {r.candidate_id: r for r in ctx.shards(first.stage("scores")).where("candidate_id", wanted, ScoreRow)}
    sounds = _decode(ctx, ctx.prompts("train"), found)
    return [
        Comparison(record.text, record.speaker, [
            _clip(ctx, label, sounds[candidate], record.text, scores[candidate].transcript, scores[candidate].spans,
                  f"reward {reward:.2f} · {seconds:.1f} s")
            for label, candidate, reward, seconds in clips
        ])
        for record, clips in sides
    ]


def _groups(ctx: Context, variant: str) -> dict[str, list[Comparison]]:
    """What an online training learned from, early and late."""
    return online_report.groups_to_hear(ctx, variant, partial(_decode, ctx, ctx.prompts("train")), partial(_clip, ctx))


def _clip(
    ctx: Context, label: str, audio: np.ndarray, text: str, heard: list[str], spans: Sequence[Sequence[float]],
    caption: str,
) -> Clip:
    rate = codec_of(ctx.config.model).sample_rate
    if not audio.size:  # nothing was said, or it could not be decoded
        return Clip(label, audio, rate, alignment_of(text, heard), caption)
    strip = strip_of(wave_of(audio, rate), text, heard, spans, ctx.config.reward.pauses)
    return Clip(label, audio, rate, alignment_of(text, heard), caption, strip)


def _spans(row: EvalRow) -> list[tuple[float, float]]:
    """Times of an evaluation row's tokens, which lie flat in it; none in a row of before they were kept."""
    flat = row.get("spans") or []
    return list(zip(flat[::2], flat[1::2], strict=True))


def _decode(ctx: Context, prompts: Sequence[Prompt], candidates: list[Candidate]) -> dict[str, Any]:
    """The speech that was judged, decoded again: same codes, same seeds, same sound."""
    cfg = ctx.config
    if not (candidates and prompts):
        return {}
    return worker.decode(cfg.model, cfg.token2wav, cfg.seed, candidates)


def _fit(data: ReportData, max_mib: int) -> None:
    """Leave out examples from the end until the embedded speech fits (Opus: about 8 kB per second)."""
    lists = [data.before_after, data.pair_clips, *data.groups.values()]

    def clips(items: list[Comparison]) -> list[Clip]:
        return [clip for item in items for clip in item.clips]

    def mib() -> float:
        shown = [clip for items in lists for clip in clips(items)]
        drawn = sum(len(embedded(clip.drawn)) for clip in shown if clip.drawn)
        return (sum(clip.audio.size / clip.sample_rate for clip in shown) * 8_000 * 4 / 3 + drawn) / 2**20

    while mib() > max_mib - 6 and any(lists):  # plotly.js takes 5 MiB
        max(lists, key=lambda items: len(clips(items))).pop()


def _facts(ctx: Context, variant: str, choice: dict[str, Any]) -> dict[str, str]:
    command = ctx.run.manifest["commands"][-1]
    code = command["code"]
    cfg = ctx.config
    seconds = sum(entry["seconds"] for entry in ctx.run.stages.values())
    learned = data if (data := cfg.variants[variant].data) != "online" else None
    completions = ctx.run.stages[Round(1).data_stage(learned)]["counts"] if learned else {}
    return {
        "model": f"{model_name(cfg.model.path)} (content hash {model_input(cfg)['model']})",
        **({"begins with": folder_name(cfg.model.adapter)} if cfg.model.adapter else {}),
        **({"completions": f"{completions['completions']} of {count(completions['prompts'], 'prompt')} ({learned})"}
           if learned else {}),
        "variant": f"{variant}: {cfg.variants[variant].loss['type']}, round {choice['round']}, step {choice['step']}",
        "recognizer that rewards": recognizer_name(cfg.reward.recognizer),
        "recognizer that evaluates": recognizer_name(cfg.reward.evaluator),
        "candidates": f"{_per_prompt(ctx, variant)}, {count(cfg.iterations, 'round')}"
        + (f", reference {cfg.reference}" if cfg.iterations > 1 else ""),
        "time": f"{seconds / 60:.1f} min in all stages",
        "commit": f"{(code['commit'] or 'unknown')[:12]}{' with uncommitted changes' if code['diff'] else ''}",
        "device": command["device"],
        "versions": ", ".join(f"{k} {v}" for k, v in command["versions"].items()),
    }


def _per_prompt(ctx: Context, variant: str) -> str:
    online = ctx.config.variants[variant].training().online
    return (f"{ctx.config.rollouts.num_candidates} per prompt" if online is None else
            f"{online.num_generations} per prompt, {count(online.prompts_per_step, 'prompt')} per sampling")


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    return [Step("report", "one page")]


STAGE = Stage("report", "report", make, anew=("report", "eval.bootstrap_samples"), plan=_plan)
