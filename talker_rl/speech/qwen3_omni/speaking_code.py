"""Python that speaks with plain transformers: the code of a model card."""

from __future__ import annotations

import json

from talker_rl.base.places import SHIPPED_MODELS
from talker_rl.speech.qwen3_omni.codec import CODEC
from talker_rl.speech.usage import Usage

_LOAD_ADAPTER = "model.talker = PeftModel.from_pretrained(model.talker, {folder}).merge_and_unload()\n"
_LOAD_VOICES = """\
with safe_open(cached_file({folder}, "voices.safetensors"), "pt") as file:
    added, table = json.loads(file.metadata()["voices"]), model.talker.model.codec_embedding.weight
    table.data[list(added.values())] = file.get_tensor("rows").to(table)
model.config.talker_config.speaker_id.update({{name.lower(): row for name, row in added.items()}})
"""
_IMPORT_VOICES = "from safetensors import safe_open\nfrom transformers.utils import cached_file\n"

_CODE = """\
{first}import soundfile
{imports}from transformers import AutoTokenizer, Qwen3OmniMoeForConditionalGeneration

base = {base}  # a folder, or a name on the hub
model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(base, dtype={dtype}, device_map="auto")
{adapter}tokenizer = AutoTokenizer.from_pretrained(base)
messages = [{{"role": "user", "content": {user}}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
text_ids, wave = model.generate(**inputs, speaker={speaker})
soundfile.write("speech.wav", wave.reshape(-1).float().cpu().numpy(), {rate})
"""


def speaking_code(usage: Usage, *, adapter: bool) -> str:
    """Python that speaks with plain transformers, from a whole checkpoint or from the base and an adapter's folder."""
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in vars(usage).items()}
    quoted["dtype"] = usage.dtype
    imports = "from peft import PeftModel\n" * adapter
    if not adapter:
        quoted["base"] = quoted["folder"]
    elif usage.base in SHIPPED_MODELS:
        quoted["base"] = f'str(checkpoint_dir() / "{SHIPPED_MODELS[usage.base]}")'
        imports += "from talker_rl.micro import checkpoint_dir\n"
    voices = adapter and usage.own_speakers
    imports += _IMPORT_VOICES * voices
    # (voices first: a merged adapter keeps the Talker's table)
    own = (_LOAD_VOICES * voices + _LOAD_ADAPTER).format(**quoted) if adapter else ""
    return _CODE.format(rate=CODEC.sample_rate, imports=imports, adapter=own, **quoted,
                        first="import json\n\n" * voices)
