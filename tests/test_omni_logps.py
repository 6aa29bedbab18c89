"""Teacher-forced log-probs equal what rollouts recorded, what transformers' generate gives, and ignore padding."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from omni_factory import random_conditionings, tiny_omni
from said import sequence

from benchmarks._upstream import generate
from talker_rl.base.errors import DataError
from talker_rl.speech.config import LoraSettings, SamplingConfig
from talker_rl.speech.head import selective_logps
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.layout import collate, prefix_inputs, talker_inputs
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates

TOLERANCE = 1e-5
MIXED = [[5, 6], [7] * 30, [8, 9, 8294]]


@pytest.fixture(scope="module")
def talker():
    return tiny_omni().talker


@pytest.fixture(scope="module")
def adapted():
    """A Talker with a LoRA adapter that does change it."""
    model = attach_lora(tiny_omni().talker, LoraSettings(r=4, lora_alpha=8), base_model="tiny")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def examples_of(candidates, conditionings):
    by_id = {c.prompt_id: c for c in conditionings}
    return [
        sequence(by_id[c.prompt_id], c.codes + ([c.stop_id] if c.stop_id is not None else [])) for c in candidates
    ]


@pytest.fixture(scope="module", params=["base", "adapter on", "adapter off"])
def rolled(request, talker, adapted):
    """(which, model, conditionings, candidates) of each state of the adapter."""
    model = talker if request.param == "base" else adapted
    with adapted.disable_adapter() if request.param == "adapter off" else nullcontext():
        return request.param, model, *rollouts(model)


def rollouts(model):
    """64 candidates of mixed length over 16 prompts of mixed length, some past the end of their reply."""
    conditionings = random_conditionings([(5 + 3 * i, 2 + i % 7) for i in range(16)])
    seeds = [[100 * i + k for k in range(4)] for i in range(16)]
    sampling = SamplingConfig(max_new_tokens=60, top_k=30, top_p=0.95, sequence_bias=[([8294], 5.0)])
    candidates = sample_candidates(model, conditionings, seeds, sampling)
    return conditionings, candidates


def max_difference(model, candidates, conditionings, batch_size):
    worst, count = 0.0, 0
    examples = examples_of(candidates, conditionings)
    pairs = [(c, e) for c, e in zip(candidates, examples, strict=True) if e.speech.ids]
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        with torch.no_grad():
            logps = token_logps(model, collate([e for _, e in chunk]))
        for row, (candidate, example) in zip(logps, chunk, strict=True):
            stored = torch.tensor(candidate.token_logps)
            assert len(stored) == len(example.speech.ids)
            worst = max(worst, float((row[: len(stored)] - stored).abs().max()))
            assert not row[len(stored) :].any()
            count += 1
    return worst, count


@pytest.mark.parametrize("batch_size", [64, 1])
def test_equal_to_the_rollouts_own(talker, rolled, batch_size):
    which, model, conditionings, candidates = rolled
    with model.disable_adapter() if which == "adapter off" else nullcontext():
        worst, count = max_difference(model, candidates, conditionings, batch_size)
    if which == "adapter off":
        base, _ = max_difference(talker, candidates, conditionings, 64)
        assert base <= TOLERANCE  # off means the base
        on, _ = max_difference(model, candidates, conditionings, 64)
        assert on > 0.01  # and the adapter does something
    lengths = {len(c.codes) for c in candidates}
    assert len(candidates) == 64 and count >= 60 and len(lengths) >= 8
    assert {"eos", "max_tokens"} <= {c.end_reason for c in candidates}
    assert worst <= TOLERANCE


@pytest.mark.parametrize("lengths", [[(9, 4)], [(9, 4), (14, 6), (5, 2), (14, 20)]], ids=["alone", "batch"])
def test_equal_to_transformers_generate(talker, lengths):
    """Greedy codes are equal; raw log-probs of the same codes differ by float error only, past the reply's end too."""
    conditionings = random_conditionings(lengths, seed=3)
    steps = 40
    result, width = generate(talker, conditionings, suppress_tokens=[talker.codec_bos_token], max_new_tokens=steps,
                             return_dict_in_generate=True, output_logits=True, output_scores=True, do_sample=False,
                             repetition_penalty=1.05)  # fmt: skip
    sampling = SamplingConfig(do_sample=False, repetition_penalty=1.05, max_new_tokens=steps)
    candidates = sample_candidates(talker, conditionings, [[0]] * len(conditionings), sampling)
    codes = result.sequences[:, width:]
    longest = 0
    for i, candidate in enumerate(candidates):
        ids = candidate.codes + ([candidate.stop_id] if candidate.stop_id is not None else [])
        assert codes[i, : len(ids)].tolist() == ids
        raw = torch.stack([logits[i] for logits in result.logits[: len(ids)]]).log_softmax(-1)
        processed = torch.stack([scores[i] for scores in result.scores[: len(ids)]]).log_softmax(-1)
        theirs = raw.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        theirs_processed = processed.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        ours = token_logps(talker, collate([sequence(conditionings[i], ids)]))[0]
        assert float((ours - theirs).abs().max()) <= TOLERANCE
        assert float((torch.tensor(candidate.processed_logps) - theirs_processed).abs().max()) <= TOLERANCE
        longest = max(longest, len(ids))
    assert longest > max(len(c.reply_stream) for c in conditionings)


def test_padding_content_changes_nothing(talker):
    conditionings = random_conditionings([(9, 4), (20, 3), (4, 1)])
    examples = [sequence(c, codes) for c, codes in zip(conditionings, MIXED, strict=True)]
    clean, dirty = collate(examples), collate(examples)
    dirty.codes_BT[~dirty.completion_mask_BT] = 8000
    dirty.predictor_BT[~dirty.completion_mask_BT] = 1
    assert torch.equal(token_logps(talker, clean), token_logps(talker, dirty))


def test_sequences_do_not_see_each_other(talker):
    """Other codes or another conditioning beside a sequence leave its log-probs as they are."""
    conditionings = random_conditionings([(9, 4), (20, 3), (4, 1)])
    examples = [sequence(c, codes) for c, codes in zip(conditionings, MIXED, strict=True)]
    before = token_logps(talker, collate(examples))
    shared = [sequence(conditionings[1], [4, 4]), *examples, sequence(conditionings[1], [3])]
    after = token_logps(talker, collate(shared))
    assert torch.allclose(before, after[1:4], atol=TOLERANCE)


def test_order_of_a_batch_does_not_matter(talker):
    conditionings = random_conditionings([(9, 4), (20, 3), (4, 1)])
    examples = [sequence(c, codes) for c, codes in zip(conditionings, MIXED, strict=True)]
    forward = token_logps(talker, collate(examples))
    backward = token_logps(talker, collate(examples[::-1])).flip(0)
    assert torch.allclose(forward, backward, atol=TOLERANCE)


def test_layout_by_hand(talker):
    """The sum of layout.py's table, position by position, and which output predicts which code."""
    (c,) = random_conditionings([(4, 2)])
    batch = collate([sequence(c, [11, 12, 13, 8294])])
    embed = talker.get_input_embeddings().weight
    expected = torch.stack(
        [
            c.prefix[0],
            c.prefix[1],
            c.prefix[2] + embed[8292],
            c.prefix[3] + embed[8293],
            c.reply_stream[0] + embed[11],
            c.reply_stream[1] + embed[12],
            c.reply_stream[1] + embed[13],  # the last row repeats
        ]
    )
    assert torch.equal(talker_inputs(talker, batch)[0], expected)
    assert torch.equal(prefix_inputs(talker, c.prefix), expected[:4])
    assert batch.predictor_BT.tolist() == [[3, 4, 5, 6]]
    assert batch.completion_mask_BT.all() and batch.codes_BT.tolist() == [[11, 12, 13, 8294]]


def test_inputs_are_left_as_they_are(talker):
    (c,) = random_conditionings([(6, 3)])
    before = c.prefix.clone(), c.reply_stream.clone()
    first = token_logps(talker, collate([sequence(c, [1, 2, 3])]))
    second = token_logps(talker, collate([sequence(c, [1, 2, 3])]))
    assert torch.equal(first, second)
    assert torch.equal(before[0], c.prefix) and torch.equal(before[1], c.reply_stream)


def test_empty_sequences_are_refused():
    (c,) = random_conditionings([(6, 3)])
    with pytest.raises(DataError, match="without ids"):
        collate([sequence(c, [])])
    with pytest.raises(DataError, match="empty batch"):
        collate([])


def test_bf16_is_close(talker):
    conditionings = random_conditionings([(9, 4), (14, 6)])
    examples = [sequence(c, list(range(20, 40))) for c in conditionings]
    exact = token_logps(talker, collate(examples))
    rough = token_logps(tiny_omni().talker.bfloat16(), collate(examples))
    assert rough.dtype == torch.float32
    assert 0 < float((exact - rough).abs().max()) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 64, 150])
def test_selective_logps_and_their_gradient_equal_log_softmax(rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    logits = (4 * torch.randn(rows, 300, generator=generator)).to(dtype)
    ids, weight = torch.randint(300, (rows,), generator=generator), torch.randn(rows, generator=generator)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    got = selective_logps(ours, ids)
    want = theirs.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)


def test_selective_logps_survive_huge_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    logps = selective_logps(logits, torch.tensor([1]))
    logps.sum().backward()
    assert logps.item() == -2e4 and logits.grad.tolist() == [[-1.0, 1.0, 0.0]]
