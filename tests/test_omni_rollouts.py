"""Rollouts: transformers' processed distribution, one seed a candidate, records that say how each one ended."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from omni_factory import random_conditionings, tiny_omni
from pydantic import ValidationError
from said import sequence

from talker_rl.base.errors import ConfigError, DataError, StageError
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.qwen2_5_omni.decoder import Decoder
from talker_rl.speech.qwen2_5_omni.graph import GraphedStep
from talker_rl.speech.qwen2_5_omni.layout import code_ids, collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
from talker_rl.speech.sampling import CodeSampler, Histories, uniforms

EVERY_OPTION = [
    {},
    {"do_sample": False},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
    {"temperature": 0.7, "top_k": 0, "top_p": 0.9},
    {"top_k": 50, "top_p": 1.0, "min_p": 0.05},
    {"top_k": 200, "top_p": 0.99, "typical_p": 0.8},
    {"top_k": 0, "top_p": 1.0, "epsilon_cutoff": 3e-4},
    {"top_k": 100, "top_p": 1.0, "eta_cutoff": 2e-3},
    {"no_repeat_ngram_size": 2, "top_k": 10},
    {"bad_words_ids": [[12], [7, 9]], "top_k": 500, "top_p": 1.0},
    {"suppress_tokens": [1, 2, 3], "begin_suppress_tokens": [8294, 8292]},
    {"sequence_bias": [([9], -3.0), ([7, 9], 8.0)], "top_k": 20},
    {"exponential_decay_length_penalty": (2, 1.5), "min_new_tokens": 3},
    {"min_new_tokens": 8, "renormalize_logits": True, "top_k": 30},
]


@pytest.fixture(scope="module")
def talker():
    return tiny_omni().talker


def transformers_processors(talker, sampling, prefix_length):
    """What ``talker.generate`` builds for these options."""
    from transformers import GenerationConfig

    options = sampling.model_dump(exclude_none=True)
    if "sequence_bias" in options:
        options["sequence_bias"] = [[list(ids), bias] for ids, bias in options["sequence_bias"]]
    options["suppress_tokens"] = sorted({8293, *options.get("suppress_tokens", [])})
    config = GenerationConfig(**options, eos_token_id=[8292, 8294], pad_token_id=8292)
    talker._prepare_special_tokens(config, device="cpu")
    return talker._get_logits_processor(generation_config=config, input_ids_seq_length=prefix_length, device="cpu")


def sampler_of(talker, sampling, *, narrow=True):
    return CodeSampler(sampling, code_ids(talker), torch.device("cpu"), narrow=narrow)


def histories_of(sampler, said):
    """Rows that have said these ids, the longest first: the others joined later."""
    histories, longest = Histories(sampler.start_ids, len(said), 8, torch.device("cpu")), len(said[0])
    for left in range(longest, -1, -1):
        if joining := sum(len(ids) == left for ids in said):
            histories.join([0] * joining)
        if left:
            histories.append(torch.tensor([ids[len(ids) - left] for ids in said if len(ids) >= left]))
    return histories


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda o: "+".join(o) or "defaults")
def test_processed_scores_are_transformers_own(talker, options, narrow):
    """Rows at different steps, on random logits and histories, against the list that transformers builds itself."""
    sampling = SamplingConfig(**options)
    sampler = sampler_of(talker, sampling, narrow=narrow)
    generator = torch.Generator().manual_seed(1)
    prefix = [8296] * 15 + [8292, 8293]
    theirs = transformers_processors(talker, sampling, len(prefix))
    history = [[7, 9, 7, 30, 7], [8, 8, 8, 8, 8], [11, 12, 7, 9, 7]]
    for steps in [(0, 0, 0), (3, 2, 1), (5, 5, 0), (5, 0, 0), (4, 3, 2)]:
        logits = 4 * torch.randn(3, 8448, generator=generator)
        logits[:, [7, 8, 9, 12, 8292, 8294]] += 12
        original = logits.clone()
        said = [ids[:step] for ids, step in zip(history, steps, strict=True)]
        histories = histories_of(sampler, said)
        rows = [theirs(torch.tensor([prefix + ids]), logits[i : i + 1].clone()) for i, ids in enumerate(said)]
        expected = torch.cat(rows)
        scores, support = sampler.scores(histories, logits)
        dense = scores if support is None else torch.full_like(logits, -torch.inf).scatter(-1, support, scores)
        assert torch.equal(torch.isfinite(dense), torch.isfinite(expected))
        kept = torch.isfinite(expected)
        assert torch.allclose(dense[kept], expected[kept], rtol=1e-6, atol=1e-6)
        assert not torch.isfinite(dense[:, 8293]).any()
        _, logps = sampler.choose(histories, logits, torch.full((3,), 0.5, dtype=torch.float64))
        assert (logps <= 0).all()
        assert torch.equal(logits, original)  # raw log-probs are taken from them afterwards


def test_ties_at_the_kth_place_survive_as_in_transformers(talker):
    sampler = sampler_of(talker, SamplingConfig(top_k=2, top_p=1.0, repetition_penalty=1.0, temperature=1.0))
    logits = torch.full((2, 8448), -9.0)
    logits[0, [3, 5, 6]] = torch.tensor([1.0, 0.0, 0.0])
    logits[1, [3, 5]] = torch.tensor([1.0, 0.0])
    scores, ids = sampler.scores(histories_of(sampler, [[], []]), logits)
    survivors = [set(i[torch.isfinite(s)].tolist()) for s, i in zip(scores, ids, strict=True)]
    assert survivors == [{3, 5, 6}, {3, 5}]


def test_draws_follow_the_distribution(talker):
    """4,000 draws from a known distribution: every frequency within five standard errors."""
    sampler = sampler_of(talker, SamplingConfig(top_k=4, top_p=1.0, repetition_penalty=1.0, temperature=1.0))
    probabilities = {100: 0.5, 7: 0.3, 8294: 0.15, 4000: 0.05}
    logits = torch.full((1, 8448), -100.0)
    for code, p in probabilities.items():
        logits[0, code] = math.log(p)
    n = 4_000
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids, logps = sampler.choose(histories_of(sampler, [[]] * n), logits.expand(n, -1), drawn)
    for code, p in probabilities.items():
        share = float((ids == code).double().mean())
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)
        assert torch.allclose(logps[ids == code], torch.tensor(math.log(p), dtype=torch.float64), atol=1e-6)
    edge, _ = sampler.choose(histories_of(sampler, [[]]), logits, torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert edge.item() == 8294  # the last id with any probability, never one without


def test_a_candidate_does_not_depend_on_its_batch(talker):
    conditionings = random_conditionings([(6, 3), (15, 5), (9, 2), (21, 9)])
    seeds = [[1, 2], [3], [4, 5, 6], [7, 8]]
    sampling = SamplingConfig(max_new_tokens=50)
    together = sample_candidates(talker, conditionings, seeds, sampling)
    assert [c.candidate_id for c in together] == ["p0-0", "p0-1", "p1-0", "p2-0", "p2-1", "p2-2", "p3-0", "p3-1"]
    small = sample_candidates(talker, conditionings, seeds, sampling, batch_size=3)
    unseen = sample_candidates(talker, conditionings, seeds, sampling, batch_size=3, steps_unseen=7)
    alone = [
        sample_candidates(talker, [conditioning], [[seed]], sampling)[0]
        for conditioning, group in zip(conditionings, seeds, strict=True)
        for seed in group
    ]
    for a, b, c, d in zip(together, small, alone, unseen, strict=True):
        assert a.codes == b.codes == c.codes == d.codes and a.end_reason == c.end_reason == d.end_reason
        assert a.seed == c.seed and len(a.token_logps) == len(d.token_logps)  # nothing past a row's end
        for x, y in ((a, b), (a, c), (a, d)):
            assert torch.allclose(torch.tensor(x.token_logps), torch.tensor(y.token_logps), atol=1e-5)
            assert torch.allclose(torch.tensor(x.processed_logps), torch.tensor(y.processed_logps), atol=1e-5)
    assert len({tuple(c.codes) for c in together}) == len(together)  # other seeds, other speech


def test_rows_are_refilled_and_a_prefix_is_computed_once(monkeypatch):
    """19 prompts in groups of 4 (never more prefixes), two candidates each, five rows: full while anyone waits."""
    talker = tiny_omni().talker
    monkeypatch.setattr("talker_rl.speech.rows.PREFILL_PROMPTS", 4)
    prefilled, sampled = [], []
    talker.model.register_forward_pre_hook(
        lambda _, args, kw: prefilled.append(kw["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    talker.codec_head.register_forward_pre_hook(lambda _, args: sampled.append(len(args[0])))
    conditionings = random_conditionings([(60 if i in (7, 18) else 5 + i % 6, 2 + i % 3) for i in range(19)])
    sampling = SamplingConfig(max_new_tokens=30, sequence_bias=[([8294], 6.0)])
    seeds = [[i, 100 + i] for i in range(19)]
    together = sample_candidates(talker, conditionings, seeds, sampling)
    prefilled.clear(), sampled.clear()
    candidates = sample_candidates(talker, conditionings, seeds, sampling, batch_size=5)
    assert [c.codes for c in candidates] == [c.codes for c in together]
    assert len({len(c.codes) for c in candidates}) > 5
    assert [rows for rows, width in prefilled if width > 1] == [4, 4, 4, 4, 3]
    assert sampled == sorted(sampled, reverse=True) and sampled[0] == 5 and sampled[-1] < 5
    ids = sum(len(c.token_logps) + (c.end_reason == "invalid_code") for c in candidates)  # its log-prob is not kept
    assert sum(sampled) == ids  # nothing is computed for a candidate that ended


@pytest.mark.parametrize(("rows", "unseen"), [(64, 1), (3, 1), (3, 7)])
def test_candidates_are_given_as_they_end(talker, rows, unseen):
    """Each once, as it is returned; the short ones before the long ones where all began together."""
    conditionings, seeds = random_conditionings([(6, 3), (15, 5), (9, 2)]), [[1, 2, 3, 4], [5, 6], [7, 8]]
    sampling = SamplingConfig(max_new_tokens=40, sequence_bias=[([8294], 8.0)])
    parts: list[list] = []
    made = sample_candidates(talker, conditionings, seeds, sampling, batch_size=rows, steps_unseen=unseen,
                             ended=parts.append)
    given = [c for part in parts for c in part]
    assert len(parts) > 1 and all(parts)
    assert sorted(given, key=lambda c: c.candidate_id) == sorted(made, key=lambda c: c.candidate_id)
    if rows == 64:
        lengths = [len(c.token_logps) for c in given]
        assert lengths == sorted(lengths) and len(set(lengths)) > 1


def test_eager_attention_scores_its_own_samples():
    """Raw log-probs equal teacher-forced ones when the mask is added to the scores by hand."""
    inner = tiny_omni().talker
    inner.model.config._attn_implementation = "eager"
    conditionings = random_conditionings([(6, 3), (15, 5)])
    sampling = SamplingConfig(max_new_tokens=20, suppress_tokens=[8292, 8294, *range(8194, 8292), *range(8295, 8448)])
    for c in sample_candidates(inner, conditionings, [[1, 2], [3]], sampling, batch_size=2):
        example = sequence(conditionings[int(c.prompt_id[1:])], c.codes)
        logps = token_logps(inner, collate([example]))[0]
        assert torch.allclose(logps, torch.tensor(c.token_logps), atol=1e-5)


def test_a_longer_budget_only_continues(talker):
    conditionings = random_conditionings([(6, 3), (15, 5)])
    seeds = [[1, 2, 3], [4, 5, 6]]
    for short, long in zip(
        sample_candidates(talker, conditionings, seeds, SamplingConfig(max_new_tokens=20)),
        sample_candidates(talker, conditionings, seeds, SamplingConfig(max_new_tokens=280)),
        strict=True,
    ):
        assert long.codes[: len(short.codes)] == short.codes


def test_uniforms_do_not_depend_on_neighbors_nor_on_the_budget():
    one, three = uniforms([5], 300), uniforms([9, 5, 2], 600)
    assert torch.equal(one[0], three[1, :300])
    assert 0 <= float(three.min()) and float(three.max()) < 1 and len(three.unique()) == three.numel()


class Scripted:
    """Makes the Talker say given ids, whatever it hears: its head is replaced by a table indexed by the step."""

    def __init__(self, script):
        self.script = script

    def __call__(self, _module, _args, output):
        step = self.step
        self.step += 1
        output = torch.zeros_like(output)
        for row, ids in enumerate(self.script):
            output[row, ids[min(step, len(ids) - 1)]] = 50.0
        return output

    step = 0


@pytest.mark.parametrize(
    ("said", "codes", "stop", "reason", "entries"),
    [
        ([4, 0, 6, 8294], [4, 0, 6], 8294, "eos", 4),
        ([4, 5, 8292], [4, 5], 8292, "eos", 3),
        ([4, 5, 6, 7, 8], [4, 5, 6, 7, 8], None, "max_tokens", 5),
        ([4, 8194], [4], None, "invalid_code", 1),
        ([8294], [], 8294, "empty", 1),
        ([8300], [], None, "empty", 0),
    ],
)
def test_how_a_candidate_ends(said, codes, stop, reason, entries):
    talker = tiny_omni().talker
    talker.codec_head.register_forward_hook(Scripted([said]))
    sampling = SamplingConfig(max_new_tokens=5, repetition_penalty=1.0)
    (candidate,) = sample_candidates(talker, random_conditionings([(5, 2)]), [[1]], sampling)
    assert (candidate.codes, candidate.stop_id, candidate.end_reason) == (codes, stop, reason)
    assert len(candidate.token_logps) == len(candidate.processed_logps) == entries
    assert candidate.duration == len(codes) / 50


def test_logits_that_are_not_finite_stop_the_run():
    talker = tiny_omni().talker
    talker.codec_head.weight[5] = math.nan
    with pytest.raises(StageError, match="not finite"):
        sample_candidates(talker, random_conditionings([(5, 2)]), [[1]], SamplingConfig(max_new_tokens=5))


def test_options_that_are_no_samples_are_refused_by_name():
    searches = {"num_beams": 4, "assistant_model": "x", "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3}
    for name, value in searches.items():
        with pytest.raises(ValidationError, match=f"{name}: .* is not supported"):
            SamplingConfig(**{name: value})
    assert SamplingConfig(num_beams=1) == SamplingConfig()
    with pytest.raises(ValidationError, match="tempreature"):
        SamplingConfig(tempreature=1.0)


def test_bad_calls(talker):
    with pytest.raises(DataError, match="lists of seeds"):
        sample_candidates(talker, random_conditionings([(5, 2)]), [], SamplingConfig())
    with pytest.raises(ConfigError, match="refuses"):
        sampler_of(talker, SamplingConfig(bad_words_ids=[[-1]]))


def test_progress_and_training_mode(talker):
    seen = []
    talker.train()
    try:
        sample_candidates(
            talker, random_conditionings([(5, 2)]), [[1, 2, 3]], SamplingConfig(max_new_tokens=3), batch_size=2,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
        assert talker.training
    finally:
        talker.eval()
    assert seen == [(2, 3), (3, 3)]


@pytest.mark.parametrize("works", [True, False], ids=["replayed", "capture fails"])
def test_replayed_steps_give_the_same_candidates(talker, monkeypatch, works):
    """A CUDA graph's way without a GPU: a step over all slots and more rows than there are, into tensors that stay."""

    def capture(self, step, codes_N, slots):
        captures.append((len(codes_N), slots))
        if not works:
            raise RuntimeError("no graphs here")
        hidden_NH = step(codes_N, slots).clone()
        return lambda: hidden_NH.copy_(step(codes_N, slots)), hidden_NH

    class GraphedDecoder(Decoder):
        def __init__(self, inner, conditionings, rows, **_):
            super().__init__(inner, conditionings, rows)
            self.graphs = GraphedStep(rows)

    captures: list[tuple[int, int]] = []
    conditionings = random_conditionings([(5, 3), (9, 4), (6, 2)])
    call = (talker, conditionings, [[1, 2, 3, 4], [5, 6], [8, 9]], SamplingConfig(max_new_tokens=30))
    eager = sample_candidates(*call, batch_size=5)
    monkeypatch.setattr(GraphedStep, "_capture", capture)
    monkeypatch.setattr("talker_rl.speech.qwen2_5_omni.graph.ROWS", 2)
    monkeypatch.setattr("talker_rl.speech.row_cache.CACHE_BLOCK", 16)
    monkeypatch.setattr("talker_rl.speech.qwen2_5_omni.rollouts.Decoder", GraphedDecoder)
    with nullcontext() if works else pytest.warns(UserWarning, match="without CUDA graphs: no graphs here"):
        replayed = sample_candidates(*call, batch_size=5, steps_unseen=3)
    assert [c.codes for c in replayed] == [c.codes for c in eager]
    for a, b in zip(replayed, eager, strict=True):
        assert a.token_logps == pytest.approx(b.token_logps, abs=1e-5)
    if works:  # of several numbers of rows, and again once the cache grew
        assert len({rows for rows, _ in captures}) > 1 and {slots for _, slots in captures} == {16, 32, 48}
        assert len(captures) == len(set(captures))
    else:
        assert len(captures) == 1
