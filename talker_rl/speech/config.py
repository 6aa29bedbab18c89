"""Settings of the speech generator: model, conditioning, sampling, LoRA, token2wav. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from talker_rl.base.settings import Settings

SPEECH_SYSTEM_PROMPT = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, "
    "capable of perceiving auditory and visual inputs, as well as generating text and speech."
)
"""The publisher asks for exactly this system prompt when speech is wanted."""

REFUSED_SEARCHES = {
    "num_beams": "beam search",
    "num_beam_groups": "group beam search",
    "diversity_penalty": "group beam search",
    "length_penalty": "beam search",
    "early_stopping": "beam search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
    "penalty_alpha": "contrastive search",
    "dola_layers": "DoLa decoding",
    "assistant_model": "assisted decoding",
    "assistant_early_exit": "assisted decoding",
    "prompt_lookup_num_tokens": "assisted decoding",
}
"""transformers' options whose sequences are no samples of the policy, and what each asks for."""

DeviceMap = Literal["auto"] | dict[str, str | int]
"""Module -> device: "cpu", "cuda:1" or a GPU's number."""


class ModelConfig(Settings):
    """Which checkpoint, and how it is loaded.

    >>> ModelConfig(path="Qwen/Qwen2.5-Omni-7B", dtype="bfloat16")
    """

    path: str = Field(
        default="micro", description='"micro" (the shipped model), a folder, or a hub name such as owner/name.'
    )
    talker: str | None = Field(
        default=None, description="Folder or safetensors file with other weights for the Talker, keys as in it."
    )
    adapter: str | None = Field(
        default=None,
        description="LoRA adapter that the run begins with: a folder of one (PEFT's layout), or the folder of a run "
        "that trained one. The run samples from it, trains it on, and measures against it.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of Thinker and Talker; token2wav has its own."
    )
    speakers: str | None = Field(
        default=None,
        description="A spk_dict.pt to use in the place of the checkpoint's own, e.g. one that `talker-rl speaker add` "
        "wrote. null: the checkpoint's.",
    )
    device: str = Field(default="auto", description='"auto" (CUDA when there is one), "cpu", "cuda" or "cuda:1".')
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="Attention of Thinker and Talker; token2wav uses sdpa."
    )
    thinker_quantization: Literal["4bit"] | None = Field(
        default=None,
        description='"4bit": the Thinker\'s language model in nf4 (needs "talker-rl[4bit]" and CUDA); null: in dtype.',
    )
    thinker_device_map: DeviceMap | None = Field(
        default=None,
        description="Where the parts of a Thinker lie that does not fit one GPU (accelerate's device_map): auto shares "
        "it out over all GPUs, what does not fit waits in memory; or module -> device. null: all of it on device.",
    )
    residual_weight: float = Field(
        default=0.0, ge=0, le=1, description="Of a frame's codes behind the first in its log-prob, for families of "
        "several codebooks (Qwen3-Omni). 0: the first code alone is the policy, which decides words and length; the "
        "others are acoustic detail that would drown it."
    )
    replay_experts: bool = Field(
        default=False, description="For families whose Talker is a mixture of experts (Qwen3-Omni): write down which "
        "experts a rollout went through, and take the same in online training. In bfloat16 it takes the largest "
        "differences away between the log-probs of both; in float32 there are none. A byte a frame, layer and expert."
    )
    system_prompt: str = Field(
        default=SPEECH_SYSTEM_PROMPT, description="System message of prompts that carry none. Empty: messages of a "
        "prompt's own stay as they are, and others begin with an empty one (left out, a chat template may put its own)."
    )
    instruction: str = Field(
        default="{text}", description="User message of prompts that carry no messages; {text} is the prompt's text."
    )


class ConditioningConfig(Settings):
    """How the Thinker turns a prompt into what the Talker reads."""

    mode: Literal["teacher_forced", "generate"] = Field(
        default="teacher_forced", description="The reply is the prompt's text, or what the Thinker answers (greedy)."
    )
    batch_size: int = Field(default=32, ge=1, description="Prompts a Thinker forward.")
    max_reply_tokens: int = Field(default=256, ge=2, description="Longest reply of mode generate, text tokens.")
    max_reply_wer: float | None = Field(
        default=0.0, ge=0, description="Mode generate: word error rate of the reply against the text (marks and case "
        "aside) above which the Thinker answers instead of reading: the prompt is left out and counted, since speech "
        "is judged by the text. null takes any reply."
    )


class SamplingConfig(Settings):
    """How candidates are drawn: transformers' names, transformers' order, transformers' processors.

    >>> SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)    # the policy itself
    """

    do_sample: bool = Field(default=True, description="False: the most probable code at every step.")
    temperature: float = Field(default=0.9, gt=0, description="Divides the logits.")
    top_k: int = Field(default=40, ge=0, description="Keep the k most probable ids; 0 keeps all.")
    top_p: float = Field(default=0.8, gt=0, le=1, description="Keep the smallest set of ids with this probability.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Drop ids below this share of the best id's.")
    typical_p: float | None = Field(
        default=None, gt=0, le=1, description="Keep the most typical ids with this probability."
    )
    epsilon_cutoff: float | None = Field(
        default=None, ge=0, lt=1, description="Drop ids with less probability than this."
    )
    eta_cutoff: float | None = Field(default=None, ge=0, lt=1, description="Entropy-dependent cut-off (eta sampling).")
    repetition_penalty: float = Field(
        default=1.05, gt=0, description="Penalty of ids seen before; the prefix's mask, pad and bos ids count as seen."
    )
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, description="n-grams of this size occur once.")
    bad_words_ids: list[list[int]] | None = Field(default=None, description="Sequences of ids that never occur.")
    suppress_tokens: list[int] | None = Field(
        default=None, description="Ids that never occur; codec-bos is always among them."
    )
    begin_suppress_tokens: list[int] | None = Field(default=None, description="Ids that never occur first.")
    sequence_bias: list[tuple[list[int], float]] | None = Field(
        default=None, description="Pairs of a sequence of ids and a bias added to the logit that completes it."
    )
    exponential_decay_length_penalty: tuple[int, float] | None = Field(
        default=None, description="(start, factor): from `start` codes on the stop's logit grows exponentially."
    )
    min_new_tokens: int | None = Field(default=None, ge=0, description="No stop before this many codes.")
    max_new_tokens: int = Field(
        default=1024, ge=1, description="A candidate is cut after this many ids (50 codes per second)."
    )
    renormalize_logits: bool = Field(default=False, description="Normalize the processed scores to log-probabilities.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_searches(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        neutral = {"num_beams": (1, None), "num_beam_groups": (1, None)}
        for name, kind in REFUSED_SEARCHES.items():
            if name not in data:
                continue
            if data[name] is None or data[name] in neutral.get(name, ()):
                data = {k: v for k, v in data.items() if k != name}
                continue
            raise ValueError(
                f"{name}: {kind} is not supported, because candidates must be samples of the policy; "
                "remove it and use do_sample with temperature, top_k or top_p (or do_sample: false)"
            )
        return data


PRESETS: dict[str, dict[str, Any]] = {"reward": {"num_steps": 2, "guidance_scale": 0.0}}
"""token2wav's named points on the curve of speed against quality (``python -m benchmarks token2wav_reward --curve``).

``reward``: what a recognizer hears is the same to within a fraction of a point of WER, at a fraction of the work.
Measured on the micro model.
"""

EVALUATIONS = {"rk4": 4, "midpoint": 2, "euler": 1}
"""Of the DiT, in a step of each solver."""


def branches(guidance_scale: float) -> int:
    """Rows of the DiT per utterance: with and without conditions, or with them alone; upstream's threshold."""
    return 2 if guidance_scale >= 1e-5 else 1


class Token2WavConfig(Settings):
    """How codes become speech: upstream's settings are the defaults.

    >>> Token2WavConfig(preset="reward")
    """

    preset: Literal["reward"] | None = Field(
        default=None,
        exclude=True,
        description="Short for a set of values, which take its place; what is given beside it goes first.",
    )
    num_steps: int = Field(
        default=10, ge=2, description="Time points of the flow; between two the DiT runs as often as the solver asks."
    )
    solver: Literal["rk4", "midpoint", "euler"] | None = Field(
        default=None, description="4, 2 or 1 DiT passes per step; null: rk4 (Kutta's 3/8 rule), as upstream."
    )
    guidance_scale: float = Field(default=0.5, ge=0, description="Classifier-free guidance; 0 halves the work.")
    sway_coefficient: float | None = Field(
        default=-1.0, description="Sway sampling of the time points; null: evenly spaced."
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the DiT's attention and feed-forward; null: float32, as upstream."
    )
    tf32: bool | None = Field(
        default=None, description="TF32 products where the device has them; null: no, every product in float32."
    )
    batch_size: int = Field(default=8, ge=1, description="Utterances a DiT forward.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preset") in PRESETS:
            return PRESETS[data["preset"]] | {key: value for key, value in data.items() if key != "preset"}
        return data

    @property
    def passes(self) -> int:
        """DiT passes per utterance, a guided one counted twice: what decoding costs."""
        return EVALUATIONS[self.solver or "rk4"] * (self.num_steps - 1) * branches(self.guidance_scale)


class LoraSettings(Settings):
    """LoRA on the Talker; peft's names.

    >>> LoraSettings(r=8, target_modules=["q_proj", "v_proj"])
    """

    r: int = Field(default=16, ge=1, description="Rank.")
    lora_alpha: float = Field(
        default=32, gt=0, allow_inf_nan=False, description="Scale: the update is multiplied by lora_alpha / r."
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the update; it makes DPO's margins noisy."
    )
    target_modules: list[str] | Annotated[str, Field(description="regular expression")] = Field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Talker modules that get an update: names, or one regular expression.",
    )
    use_rslora: bool = Field(default=False, description="Scale by lora_alpha / sqrt(r).")
