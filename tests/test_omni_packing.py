"""A packed batch computes what each of its sequences computes alone: log-probs, losses, gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from losses_helpers import ALL_LOSSES, loss_id
from omni_factory import random_conditionings, tiny_omni
from said import sequence

from talker_rl.base.errors import ConfigError
from talker_rl.losses import PairBatch, build_loss
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.hashes import by_conditioning
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.packing import Packing, use_packed_attention
from talker_rl.speech.qwen2_5_omni.layout import collate, prefix_inputs, reply_rows, unwrap_talker
from talker_rl.speech.qwen2_5_omni.logps import token_logps

TOLERANCE = 1e-5
PAIRS = [(0, 12, 5), (1, 1, 9), (0, 3, 1), (2, 7, 7), (1, 20, 2)]
"""(prompt, codes of the chosen, codes of the rejected): shared prompts, unequal lengths, some of one code."""
PROMPTS = [(4, [3, 0, 5]), (1, [2]), (6, [0]), (2, [4, 1])]


def sequences():
    """Chosen, then rejected."""
    conditionings = random_conditionings([(9, 4), (20, 3), (4, 1)])
    generator = torch.Generator().manual_seed(1)
    sides = [[(p, n) for p, n, _ in PAIRS], [(p, n) for p, _, n in PAIRS]]
    return [
        sequence(conditionings[p], torch.randint(0, 8194, (n,), generator=generator).tolist())
        for side in sides
        for p, n in side
    ]


def plain_logps(model, examples):
    """One row at a time through transformers' own attention, (B, T)."""
    inner = unwrap_talker(model)
    embed = inner.get_input_embeddings()
    rows = []
    for example in examples:
        speech, codes = example.conditioning, torch.tensor(example.speech.ids)
        stream = reply_rows(speech.reply_stream, len(codes) - 1) + embed(codes[:-1])
        inputs = torch.cat([prefix_inputs(inner, speech.prefix), stream])[None]
        positions = torch.arange(inputs.shape[1]).expand(3, 1, -1)
        logits = model(inputs_embeds=inputs, position_ids=positions, use_cache=False).logits[0, -len(codes) :]
        rows.append(logits.log_softmax(-1).gather(-1, codes[:, None])[:, 0])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.fixture(scope="module", params=["full", "lora"])
def both_ways(request):
    """(trained parameters, plain log-probs, packed ones, mask), both with their graphs."""
    model = tiny_omni().talker
    if request.param == "lora":
        model = attach_lora(model, LoraSettings(r=4, lora_alpha=8), base_model="tiny")
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    else:
        model.requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    examples = sequences()
    batch = collate(examples)
    return trained, plain_logps(model, examples), token_logps(model, batch), batch.completion_mask_BT


def loss_of(config, logps, mask):
    """The loss with a reference that is not the policy; the same draws each time."""
    n = len(PAIRS)
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2))
    reference = torch.where(mask, logps.detach() + 0.1 * noise, 0.0)
    batch = PairBatch(logps[:n], logps[n:], reference[:n], reference[n:], mask[:n], mask[n:],
                      torch.Generator().manual_seed(3))  # fmt: skip
    return build_loss(config)(batch).loss


@pytest.mark.parametrize("config", ALL_LOSSES, ids=loss_id)
def test_gradients_of_every_loss_equal_the_plain_ones(both_ways, config):
    trained, plain, packed, mask = both_ways
    assert torch.allclose(plain, packed, atol=TOLERANCE, rtol=0)
    theirs, ours = (torch.autograd.grad(loss_of(config, x, mask), trained, retain_graph=True, allow_unused=True)
                    for x in (plain, packed))  # fmt: skip
    largest = max(float(g.abs().max()) for g in theirs if g is not None)
    assert largest > 1e-3  # otherwise equality would say nothing
    for a, b in zip(theirs, ours, strict=True):
        assert (a is None) == (b is None)
        assert a is None or float((a - b).abs().max()) <= TOLERANCE * max(1.0, largest)


def test_a_prompts_prefix_stands_once():
    batch = collate(sequences())
    assert batch.packing.prompts == [(9, [11, 2, 4, 0]), (20, [0, 19, 8, 1]), (4, [6, 6])]
    assert batch.position_ids_3L.shape[1] == sum(p + sum(completions) for p, completions in batch.packing.prompts)
    # both completions of the third prompt are predicted from the end of its prefix on, each by its own positions
    first = 9 + 17 + 20 + 28
    assert batch.predictor_BT[3, :7].tolist() == [first + 3, *range(first + 4, first + 10)]
    assert batch.predictor_BT[8, :7].tolist() == [first + 3, *range(first + 10, first + 16)]
    assert batch.position_ids_3L[0, first:].tolist() == [*range(4), *range(4, 10), *range(4, 10)]


def visible(prompts):
    """(L, L): whether a position sees another, from the definition."""
    prompt, stretch = [], []
    for u, (prefix, completions) in enumerate(prompts):
        for c, n in enumerate([prefix, *completions]):
            prompt += [u] * n
            stretch += [c] * n
    prompt, stretch, place = torch.tensor(prompt), torch.tensor(stretch), torch.arange(len(prompt))
    own = (prompt[:, None] == prompt) & ((stretch[:, None] == stretch) | (stretch == 0))
    return own & (place[:, None] >= place)


@pytest.mark.parametrize("way", ["_stretch_by_stretch", "_padded"])
@pytest.mark.parametrize("prompts", [PROMPTS, [(3, [0, 0])]], ids=["mixed", "no completion is read"])
def test_attention_on_either_device_equals_masked_softmax(way, prompts):
    generator = torch.Generator().manual_seed(0)
    seen = visible(prompts)
    query, key, value = (torch.randn(1, heads, len(seen), 8, generator=generator, requires_grad=True)
                         for heads in (4, 2, 2))  # fmt: skip
    got = getattr(Packing(prompts), way)(query, key, value, 0.3, 0.0)
    k, v = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = (query @ k.transpose(2, 3) * 0.3).masked_fill(~seen, float("-inf"))
    want = (scores.softmax(-1) @ v).transpose(1, 2)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    weight = torch.randn(want.shape, generator=generator)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), (query, key, value)) for x in (got, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["_stretch_by_stretch", "_padded"])
def test_nan_in_a_prompt_stays_there(way):
    """So that an error names the right pair."""
    L = sum(prefix + sum(completions) for prefix, completions in PROMPTS)
    query, key, value = (torch.randn(1, heads, L, 8) for heads in (4, 2, 2))
    key[:, :, 0] = value[:, :, 0] = float("nan")
    finite = getattr(Packing(PROMPTS), way)(query, key, value, 0.3, 0.0).isfinite().all(dim=(0, 2, 3))
    first = PROMPTS[0][0] + sum(PROMPTS[0][1])
    assert finite.tolist() == [False] * first + [True] * (L - first)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_that_are_not_packed_are_computed_as_before(attention):
    talker = tiny_omni().talker
    talker.set_attn_implementation(attention)
    inputs = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    positions = torch.arange(7).expand(3, 2, -1)

    def logits():
        with torch.no_grad():
            return talker(inputs_embeds=inputs, attention_mask=mask, position_ids=positions).logits

    before = logits()
    use_packed_attention(talker)
    name = talker.model.config._attn_implementation
    use_packed_attention(talker)
    assert name != attention and talker.model.config._attn_implementation == name
    assert torch.equal(logits(), before)


def test_a_sliding_window_is_refused():
    talker = tiny_omni().talker
    talker.model.has_sliding_layers = True
    with pytest.raises(ConfigError, match="sliding"):
        use_packed_attention(talker)


def test_a_prefix_is_shared_by_prompt_and_content_and_not_by_object():
    said = sequences()
    copied = [replace(s, conditioning=copy.deepcopy(s.conditioning)) for s in said]
    assert by_conditioning(copied) == by_conditioning(said) == [[0, 2, 5, 7], [1, 4, 6, 9], [3, 8]]
    batch, same = collate(said), collate(copied)
    assert same.packing.prompts == batch.packing.prompts and torch.equal(same.thinker_LE, batch.thinker_LE)
    copied[2].conditioning.prefix[0, 0] += 1e-6  # of the same id, and yet it says something else
    assert by_conditioning(copied) == [[0, 5, 7], [1, 4, 6, 9], [2], [3, 8]]
    talker = tiny_omni().talker
    alone = torch.cat([token_logps(talker, collate([s]))[0] for s in copied])
    together = token_logps(talker, collate(copied))
    assert torch.allclose(together[collate(copied).completion_mask_BT], alone, atol=TOLERANCE)
