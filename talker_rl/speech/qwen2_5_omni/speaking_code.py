"""Python that speaks with plain transformers: the code of a model card."""

from __future__ import annotations

import json

from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.usage import Usage

_LOAD_ADAPTER = "model.talker = PeftModel.from_pretrained(model.talker, {folder}).merge_and_unload()\n"
_LOAD_SPEAKERS = 'model.load_speakers(cached_file({folder}, "spk_dict.pt"))\n'

_CODE = """\
import json

import soundfile
import torch
{imports}from transformers import AutoTokenizer, Qwen2_5OmniForConditionalGeneration
from transformers.utils import cached_file

base = {base}  # {place}
model = Qwen2_5OmniForConditionalGeneration.from_pretrained(base, dtype={dtype}, device_map="auto")
{adapter}tokenizer = AutoTokenizer.from_pretrained(base)
with open(cached_file(base, "chat_template.json")) as file:
    template = json.load(file)["chat_template"]
messages = [
    {{"role": "system", "content": {system}}},
    {{"role": "user", "content": {user}}},
]
inputs = tokenizer.apply_chat_template(
    messages, chat_template=template, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
# One masked place on the left: where nothing is masked, transformers 5.23 leaves out the embeddings that begin speech.
inputs = {{name: torch.nn.functional.pad(value, (1, 0)) for name, value in inputs.items()}}
text_ids, wave = model.generate(**inputs, speaker={speaker})
soundfile.write("speech.wav", wave.float().cpu().numpy(), {rate})
"""


def speaking_code(usage: Usage, *, adapter: bool) -> str:
    """Python that speaks with plain transformers, from a whole checkpoint or from the base and an adapter's folder."""
    own = _LOAD_ADAPTER + _LOAD_SPEAKERS * usage.own_speakers if adapter else ""
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in vars(usage).items()}
    quoted["dtype"] = usage.dtype
    imports, place = "from peft import PeftModel\n" * adapter, "a folder, or a name on the hub"
    if not adapter:
        quoted["base"] = quoted["folder"]
    elif usage.base == "micro":
        quoted["base"], place = 'str(checkpoint_dir() / "omni")', "the model that talker_rl ships"
        imports += "from talker_rl.micro import checkpoint_dir\n"
    return _CODE.format(rate=CODEC.sample_rate, imports=imports, adapter=own.format(**quoted), place=place, **quoted)
