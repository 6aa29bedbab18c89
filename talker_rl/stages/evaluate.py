"""Evaluation: base and trained side by side on prompts that nothing was chosen on, judged by a second recognizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, read_json
from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.config import RunConfig
from talker_rl.evaluation.seed_tts_eval import figures, simplified, table
from talker_rl.evaluation.seed_tts_rows import protocol_figures, score_rows
from talker_rl.evaluation.summary import compare, variant_summary
from talker_rl.planning import memory
from talker_rl.planning.forecast import Job, Part, heard, spoken
from talker_rl.records.evaluation import EvalRow
from talker_rl.reward.config import shared_languages
from talker_rl.rounds import Round, choice_stage
from talker_rl.stages import likelihood, round_figures, tasks, worker
from talker_rl.stages.choice import chosen_policy
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input, start_adapter, start_input, talker_path
from talker_rl.stages.stage import MODEL, REWARD, Stage, Step
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import chunks


def make(ctx: Context) -> dict[str, Any]:
    """Write ``eval/<variant>/`` (rows and summary.json) and ``eval/summary.json``; returns the latter.

    The variant of ``eval/summary.json`` is the one that was best on dev, so that eval chooses nothing.
    """
    check(ctx)
    shared = shared_languages(ctx.config.reward.recognizer, ctx.config.reward.evaluator)
    same = [lang for lang in ctx.languages("eval") if lang in shared]
    if same:
        ctx.say(f"warning: the recognizer that rewards also evaluates ({', '.join(same)}): the figures may flatter; "
                "name another under reward.evaluator")
    base = run_base(ctx)
    last = ctx.config.iterations
    for name, weights in ctx.config.eval.talkers.items():
        from talker_rl.speech.files import content_hash

        path = talker_path(weights)
        rows = _variant(ctx, name, None, {"talker": content_hash(path)}, talker=str(path))
        _summary(ctx, name, base, rows)
    found: dict[str, dict[str, Any]] = {}
    for variant in ctx.config.variants:
        choice = choice_stage(variant, last)
        rows = _variant(ctx, variant, chosen_policy(ctx, variant, last), ctx.contents(choice))
        found[variant] = _summary(ctx, variant, base, rows, trained_here=True)
    best = best_variant(ctx)
    ctx.write_json("eval/summary.json", {"variant": best, **found[best]})
    return found[best]


def check(ctx: Context) -> None:
    """Whether the evaluation can be made, once the prompts are read: before hours of sampling and not after.

    Raises:
        StageError: variants and further Talkers share a name.
        ConfigError: no evaluator hears a language of the eval prompts, or a package of the protocol is missing.
    """
    if "base" in ctx.config.variants or set(ctx.config.variants) & set(ctx.config.eval.talkers):
        raise StageError("eval.talkers and train share a name", where="eval.talkers", fix="rename one of them")
    for lang in ctx.languages("eval"):
        ctx.config.reward.evaluator.for_lang(lang)
        if ctx.config.eval.protocol and lang == "zh":
            simplified("")  # which says that zhconv is missing


def run_base(ctx: Context) -> list[EvalRow]:
    """Write ``eval/base/``, the policy as the run began: every variant is measured against it. It needs no training."""
    rows = _variant(ctx, "base", start_adapter(ctx.config), start_input(ctx.config))
    found = variant_summary(rows, resamples=ctx.config.eval.bootstrap_samples)
    if ctx.config.eval.protocol:
        found["seed_tts_eval"] = _by_protocol(ctx, "base", rows)
    ctx.write_json("eval/base/summary.json", found)
    return rows


def best_variant(ctx: Context) -> str:
    """The variant whose chosen checkpoint was best on dev."""
    metric, last = ctx.config.checkpoint.metric, ctx.config.iterations
    values = {}
    for variant in ctx.config.variants:
        choice = read_json(ctx.run.path / choice_stage(variant, last) / "choice.json")
        row = next(r for r in choice["checkpoints"] if r["step"] == choice["step"])
        known = row[metric] is not None  # of nothing that was scored
        values[variant] = (-row["reward"] if metric == "reward" else row["wer"]) if known else math.inf
    return min(values, key=lambda name: values[name])


def eval_rows(ctx: Context, name: str) -> list[EvalRow]:
    """Rows of an evaluated variant."""
    ctx.run.content(f"eval/{name}")
    return list(ctx.shards(f"eval/{name}").all_rows())


def eval_candidates(ctx: Context, name: str) -> list[EvalRow]:
    """Candidate rows (with codes) of an evaluated variant."""
    return list(ctx.shards(f"eval/{name}/{tasks.CANDIDATES}").all_rows())


def _variant(
    ctx: Context, name: str, policy: Path | None, more: dict[str, str], *, talker: str | None = None
) -> list[EvalRow]:
    """Speak and judge the eval prompts with one policy."""
    stage, cfg = f"eval/{name}", ctx.config.eval
    sampling = cfg.sampling or ctx.config.rollouts.sampling
    inputs = {**ctx.contents("prompts", "conditioning"), "reward": ctx.scorer_input("recognizer"),
              "evaluator": ctx.scorer_input("evaluator"), **model_input(ctx.config), **more}
    key = STAGE.begin(ctx.run, ctx.config, stage, inputs, {
        "seeds": cfg.seeds, "extras": cfg.extras, "sampling": sampling.model_dump(mode="json"),
        "dtype": ctx.config.model.dtype, "attn_implementation": ctx.config.model.attn_implementation,
        "shard_size": ctx.config.rollouts.shard_size, "batch_size": ctx.config.rollouts.batch_size,
    })
    prompts = ctx.prompts("eval")
    parts = chunks(prompts, ctx.config.rollouts.shard_size)
    model = ctx.config.model.model_copy(update={"talker": talker} if talker else None)
    audio = tasks.audio_spec(ctx, stage, prompts)

    def task(i: int) -> worker.Task:
        return worker.Task(model, tasks.sampling(ctx, stage, policy, "eval", parts[i], cfg.seeds, sampling),
                           tasks.judging(ctx, parts[i], "eval", audio=audio, extras=cfg.extras))

    with timed() as seconds:
        folder = tasks.speak(ctx, stage, key, len(parts), task)
    rows = list(folder.all_rows())
    failed = sum(row["status"] != "ok" for row in rows)
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0],
                   counts={"ok": len(rows) - failed, "failed": failed})
    return rows


def _by_protocol(ctx: Context, name: str, rows: list[EvalRow], base: list[EvalRow] | None = None) -> dict[str, Any]:
    """seed-tts-eval's figures, and its table of every utterance as ``eval/<name>/seed-tts-eval.<lang>.tsv``."""
    scored = score_rows(rows)
    for lang, found in scored.by_lang.items():
        text = table(u for _, u in found) + f"WER: {figures([u for _, u in found])['wer_percent']}%\n"
        atomic_write(ctx.run.path / "eval" / name / f"seed-tts-eval.{lang}.tsv", text)
    evaluators = {lang: ctx.config.reward.evaluator.for_lang(lang).path for lang in scored.by_lang}
    return protocol_figures(scored, None if base is None else score_rows(base), evaluators,
                            resamples=ctx.config.eval.bootstrap_samples)


def _summary(
    ctx: Context, name: str, base: list[EvalRow], rows: list[EvalRow], *, trained_here: bool = False
) -> dict[str, Any]:
    """Spoken figures; of a variant of this run also the likelihood of held-out codes, and its rounds on dev."""
    found = compare(base, rows, resamples=ctx.config.eval.bootstrap_samples)
    if trained_here and (codes := likelihood.make(ctx, name)):
        for side in ("base", "trained"):
            found[side]["nll"] = codes.pop(side)
        found |= {"nll_diff_ci95": codes.pop("diff_ci95"), "nll_of": codes}
    if trained_here and ctx.config.iterations > 1:
        found["rounds"] = round_figures.table(ctx, name)
    if ctx.config.eval.protocol:
        found["seed_tts_eval"] = _by_protocol(ctx, name, rows, base)
    ctx.write_json(f"eval/{name}/summary.json", found)
    return found


def judged(config: RunConfig) -> int:
    """Talkers that are evaluated; where every checkpoint is, at least those that are known before there are pairs."""
    every = config.eval.checkpoints == "all"
    return 1 + len(config.eval.talkers) + sum(max(1, cfg.checkpoints(0)) if every else 1
                                              for cfg in config.variants.values())


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    texts, seeds = count(sizes["eval"], "text"), count(config.eval.seeds, "seed")
    each = sizes["eval"] * config.eval.seeds
    return [Step("evaluation", f"{count(judged(config), 'Talker')} x {count(each, 'utterance')} ({texts} x {seeds}), "
                               "two recognizers", judged(config) * each)]


def _work(job: Job, index: int) -> list[Part]:
    config, texts = job.config, judged(job.config) * job.sizes["eval"]
    utterances = texts * config.eval.seeds
    works = spoken(job, texts, config.eval.seeds) + heard(job, "recognizer", utterances)
    disk = (utterances * (memory.EVAL_BYTES + job.lengths.codes * memory.ROLLOUT_BYTES_A_CODE)
            + judged(config) * memory.audio_on_disk(config, job.sizes["eval"], config.eval.seeds, job.lengths))
    return [Part("evaluation", f"{count(judged(config), 'Talker')}: {count(utterances, 'utterance')}",
                 works + heard(job, "evaluator", utterances), job.devices, job.peaks["evaluation"], disk,
                 judged(config))]


STAGE = Stage(
    "eval", "evaluation", make, rules=("sampling", "decoding"), key=("seed", "token2wav"), plan=_plan, work=_work,
    through=("eval.seeds", "eval.extras", "eval.sampling", "eval.talkers", "rollouts.sampling", "rollouts.shard_size",
             "rollouts.batch_size", "iterations", "reward.evaluator", "model.adapter", "model.dtype",
             "model.attn_implementation", *MODEL, *REWARD),
    anew=("eval.bootstrap_samples", "eval.protocol", "checkpoint.metric"),
)
