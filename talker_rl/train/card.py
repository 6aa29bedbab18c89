"""Model cards: what weights were trained on and by what, how well they speak, where they come from, how to use them.

One builder for the folder that training leaves and for what ``talker-rl export`` writes, which knows of the whole run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from talker_rl.base.figures import changed, count, written
from talker_rl.base.names import folder_name, hub_name, model_name, without_places
from talker_rl.records.codec import FIRST
from talker_rl.speech.registry import family_named
from talker_rl.speech.usage import Usage

_SHOWN = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen_drift",
    "logps/rejected_drift",
    "logps/chosen_eos",
    "length/chosen",
    "length/rejected",
    "length/reward_corr",
)

@dataclass(frozen=True)
class RunFacts:
    """What a run, or an export, knows of a variant beyond its training."""

    usage: Usage
    weights: Sequence[str]
    """Lines on what the weights are and what storing them cost."""
    evaluation: Mapping[str, Any] | None = None
    """``eval/<variant>/summary.json``."""
    before: str = "base"
    """What the evaluation measures against: the base, or the policy that the run began with."""
    judge: str = "the evaluating recognizer"
    """What measured the WER."""
    length_bias: Sequence[str] = ()
    """Lines on length bias and stability."""
    data: Sequence[str] = ()
    """Lines on prompt sets, candidates, scores and pairs."""
    lineage: Sequence[str] = ()
    """Lines on the base, rounds, parents, configuration, code and versions."""


def model_card(
    result: Mapping[str, Any] | None, settings: Mapping[str, Any], *, adapter: bool,
    facts: RunFacts | None = None, merged: bool = False,
) -> str:
    """README.md of a folder of weights.

    Args:
        result: what `train_variant` returns; None where only an adapter is known.
        settings: what is written to variant.json: config, hashes, lineage; at least ``base_model``.
        adapter: whether a PEFT adapter was trained (else full weights).
        facts: the run's; without them the card is of the training alone.
        merged: the folder is a whole checkpoint with the trained weights in it.
    """
    name = result["name"] if result else "adapter"
    family = facts.usage.family if facts else settings.get("family", FIRST)
    base = facts.usage.base if facts else model_name(settings["base_model"])
    lines = ["---", _front_matter(name, base, facts, adapter and not merged, family), "---", "",
             f"# Talker variant: {name}", "", _summary(settings, adapter, merged, family), "",
             *_use(facts, adapter, merged)]
    if facts:
        lines += [*_evaluation(facts), *_length_bias(facts.length_bias)]
    if result:
        lines += ["## Loss", "", *_json(settings["config"]["loss"]), *_data(result, settings, facts)]
    lines += _lineage(result, settings, facts)
    if result:
        lines += [*_numbers(result), "## Settings", "", *_json(settings["config"])]
    return "\n".join(lines)


def _front_matter(name: str, base: str, facts: RunFacts | None, adapter: bool, family: str) -> str:
    """YAML metadata as the hub reads it: a base that is not on the hub is not in it. It states no license: the base's
    holds for what is made of it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if facts and facts.evaluation:
        trained = facts.evaluation["trained"]
        results = [EvalResult(
            task_type="text-to-speech", dataset_type="held-out-texts", metric_type="wer",
            dataset_name=f"{count(trained['n'], 'utterance')} of {count(trained['prompts'], 'held-out text')}",
            metric_name=f"corpus WER by {facts.judge}", metric_value=round(trained["wer"], 5),
        )]
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-to-speech",
        base_model=hub_name(base),
        base_model_relation="adapter" if adapter else "finetune",
        tags=["talker-rl", "preference-training", family],
        model_name=name if results else None,
        eval_results=results,
    ).to_yaml()


def _summary(settings: Mapping[str, Any], adapter: bool, merged: bool, family: str) -> str:
    title = family_named(family).TITLE
    what = ("The whole checkpoint, in which only tensors of the Talker were changed" if merged
            else f"A LoRA adapter for the Talker of {title}" if adapter
            else f"A set of full weights of the Talker of {title}")
    if "config" not in settings:  # of an adapter that no run tells of
        return f"{what}. The base's license holds."
    data = settings["config"].get("data")
    how = ("what it said while it was trained, judged as it went" if data == "online" else
           "speech codes by supervision" if data else "pairs of its own samples")
    return f"{what}, trained on {how} by talker_rl. The base's license holds."


def _use(facts: RunFacts | None, adapter: bool, merged: bool) -> list[str]:
    if facts is None:
        code = ("from peft import PeftModel\nmodel = PeftModel.from_pretrained(omni.talker, THIS_FOLDER)\n" if adapter
                else "from safetensors.torch import load_file\n"
                     'talker.load_state_dict(load_file("model.safetensors"))\n')
        return ["```python", f"{code}```", ""]
    family = family_named(facts.usage.family)
    code = family.speaking_code(facts.usage, adapter=adapter and not merged)
    return ["## Use", "", "```python", f"{code}```", "", *(f"- {line}" for line in facts.weights), ""]


def _evaluation(facts: RunFacts) -> list[str]:
    found = facts.evaluation
    if not found:
        return ["## Evaluation", "", "None was made.", ""]
    base, trained = found["base"], found["trained"]
    lines = ["## Evaluation", "",
             f"{count(found['n'], 'utterance')} of {count(found['prompts'], 'held-out text')}, the same seeds for "
             f"both, heard by "
             f"{facts.judge}. Intervals are 95 %, by a paired bootstrap over texts.", "",
             f"| | {facts.before} | trained | difference |", "|---|---|---|---|"]
    rows = [("corpus WER", "wer", found["wer_diff_ci95"], "{:.2%}"), ("mean WER", "wer_mean", None, "{:.2%}"),
            *((label, key, found.get(f"{key}_diff_ci95"), "{:.3f}") for label, key in
              (("pause error", "pause_error"), ("speaker similarity", "speaker_similarity"),
               ("F0 spread, semitones", "f0_spread"))),
            ("duration, s", "duration_mean", None, "{:.2f}"), ("cut at the limit", "cap_hit_rate", None, "{:.2%}"),
            ("held-out codes, nats per code", "nll", found.get("nll_diff_ci95"), "{:.4f}")]
    for label, key, interval, pattern in rows:
        before, after = base.get(key), trained.get(key)
        if before is None or after is None:
            continue
        lines.append(f"| {label} | {written(before, pattern)} | {written(after, pattern)} | "
                     f"{changed(after - before, interval, pattern)} |")
    interval = found["wer_diff_ci95"]
    if interval and interval[0] <= 0 <= interval[1]:
        lines += ["", "The interval of the WER includes 0: no claim of an improvement is made."]
    return [*lines, ""]


def _length_bias(lines: Sequence[str]) -> list[str]:
    return ["## Length bias and stability", "", "```", *lines, "```", ""] if lines else []


def _data(result: Mapping[str, Any], settings: Mapping[str, Any], facts: RunFacts | None) -> list[str]:
    data = result["data"]
    if settings["config"].get("data") == "online":
        return ["## Data", "", *(f"- {line}" for line in (facts.data if facts else ())),
                f"- its own samples: {count(data['decodes'], 'decode')} of {count(data['prompts'], 'prompt')} in "
                f"{count(data['samplings'], 'sampling')}", ""]
    what = "completions" if settings["config"].get("data") else "pairs"
    seconds = [f"{side} {data[f'{side}_seconds']:.3f}" for side in ("chosen", "rejected")
               if data[f"{side}_seconds"] is not None]
    lines = ["## Data", "", *(f"- {line}" for line in (facts.data if facts else ())),
             f"- {what}: {data['pairs']} of {count(data['prompts'], 'prompt')} (content hash "
             f"`{settings['pairs_hash']}`)",
             f"- held-out {what}: {data['eval_pairs']}",
             f"- mean seconds: {', '.join(seconds)}"]
    lines += [f"- {name.replace('_', ' ')}: {count}" for name, count in data["length_limit"].items() if count]
    return [*lines, ""]


def _lineage(result: Mapping[str, Any] | None, settings: Mapping[str, Any], facts: RunFacts | None) -> list[str]:
    lines = ["## Lineage", ""]
    if facts:
        lines += [f"- {line}" for line in facts.lineage]
    else:
        lines.append(f"- base model: `{model_name(settings['base_model'])}` (hash `{settings['model_hash']}`)")
        start, reference = settings["start_adapter"], settings.get("reference")
        other = reference if reference in (None, "the base") else _policy(reference, settings["reference_hash"])
        lines.append(f"- reference: {other or ('the starting adapter' if start else 'the base')}"
                     + (f"; begun from {_policy(start, settings['start_adapter_hash'])}" if start else ""))
    if result:
        lines.append(f"- step kept: {result['step']} of {result['steps']} ({result['selected_by']})")
    return [*lines, ""]


def _policy(adapter: str, digest: str | None) -> str:
    return f"`{folder_name(adapter)}` (hash `{digest}`)"


def _numbers(result: Mapping[str, Any]) -> list[str]:
    lines = ["## Numbers", "", "| metric | train, last window | held-out, step kept |", "|---|---|---|"]
    for name in _SHOWN:
        train, held_out = result["train"].get(name), result["eval"].get(f"eval_{name}")
        if train is not None or held_out is not None:
            lines.append(f"| {name} | {_number(train)} | {_number(held_out)} |")
    if result["alarm_step"] is not None:
        lines += ["", f"The alarm of falling chosen log-probs rang at step {result['alarm_step']}."]
    return [*lines, ""]


def _json(value: Any) -> list[str]:
    return ["```json", json.dumps(without_places(value), indent=2, sort_keys=True), "```", ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
