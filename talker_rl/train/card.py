"""The model card of a variant: data, loss, settings, numbers, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def model_card(result: Mapping[str, Any], settings: Mapping[str, Any], *, adapter: bool) -> str:
    """README.md of a variant's folder.

    Args:
        result: what `train_variant` returns.
        settings: what is written to variant.json: config, hashes, lineage.
        adapter: whether the weights are a PEFT adapter.
    """
    data = result["data"]
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-to-speech",
        f"base_model: {json.dumps(settings['base_model'])}",
        "tags:",
        "- talker-rl",
        "- preference-training",
        "- qwen2_5_omni",
        "---",
        "",
        f"# Talker variant: {result['name']}",
        "",
        f"A {'LoRA adapter for the' if adapter else 'set of full weights of the'} Talker of Qwen2.5-Omni, trained on "
        "pairs of its own samples by talker_rl.",
        "",
        "```python",
        *(
            ["from peft import PeftModel", "model = PeftModel.from_pretrained(omni.talker, THIS_FOLDER)"]
            if adapter
            else ["from safetensors.torch import load_file", 'talker.load_state_dict(load_file("model.safetensors"))']
        ),
        "```",
        "",
        "## Loss",
        "",
        "```json",
        json.dumps(settings["config"]["loss"], indent=2),
        "```",
        "",
        "## Data",
        "",
        f"- pairs: {data['pairs']} of {data['prompts']} prompts (content hash `{settings['pairs_hash']}`)",
        f"- held-out pairs: {data['eval_pairs']}",
        f"- mean seconds: chosen {data['chosen_seconds']:.3f}"
        + (f", rejected {data['rejected_seconds']:.3f}" if data["rejected_seconds"] is not None else ""),
    ]
    lines += [f"- {name.replace('_', ' ')}: {count}" for name, count in data["length_limit"].items() if count]
    lines += [
        "",
        "## Lineage",
        "",
        f"- base model: `{settings['base_model']}` (hash `{settings['model_hash']}`)",
        f"- reference: {settings['reference']}" if "reference" in settings else
        f"- reference: {'the starting adapter' if settings['start_adapter'] else 'the base'}"
        + (f" (`{settings['start_adapter']}`)" if settings["start_adapter"] else ""),
        f"- step kept: {result['step']} of {result['steps']} ({result['selected_by']})",
        "",
        "## Numbers",
        "",
        "| metric | train, last window | held-out, step kept |",
        "|---|---|---|",
    ]
    for name in _SHOWN:
        train, held_out = result["train"].get(name), result["eval"].get(f"eval_{name}")
        if train is not None or held_out is not None:
            lines.append(f"| {name} | {_number(train)} | {_number(held_out)} |")
    if result["alarm_step"] is not None:
        lines += ["", f"The alarm of falling chosen log-probs rang at step {result['alarm_step']}."]
    lines += ["", "## Settings", "", "```json", json.dumps(settings["config"], indent=2, sort_keys=True), "```", ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
