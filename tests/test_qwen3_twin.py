"""Qwen3-Omni's Talker at random weights: forced log-probs are upstream's own and the rollouts' own, code by code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from qwen3_factory import GROUPS, MARK_IDS, STOP, random_conditionings, tiny_qwen3, tiny_talker

from talker_rl.base.errors import DataError, StageError
from talker_rl.records.codec import codec_named
from talker_rl.records.speech import Speech
from talker_rl.speech.config import LoraSettings, SamplingConfig
from talker_rl.speech.lora import attach_lora, load_lora
from talker_rl.speech.protocol import SampleRequest, TalkerSequence
from talker_rl.speech.qwen3_omni import logps as by_hand
from talker_rl.speech.qwen3_omni.codec import CODEC
from talker_rl.speech.qwen3_omni.conditioning import Conditioning
from talker_rl.speech.qwen3_omni.layout import Specials, collate, talker_inputs
from talker_rl.speech.qwen3_omni.policy import TalkerPolicy, lora_targets
from talker_rl.speech.unwrap import unwrap_talker

FIRST, RESIDUAL = 1e-5, 2e-5
SAMPLING = SamplingConfig(max_new_tokens=24, top_k=50, top_p=1.0)


@pytest.fixture(scope="module")
def talker():
    return tiny_talker()


def requests(lengths, per_prompt=3):
    return [SampleRequest(c, [100 * i + k for k in range(per_prompt)])
            for i, c in enumerate(random_conditionings(lengths))]


def sequences(candidates, asked):
    by_id = {r.conditioning.prompt_id: r.conditioning for r in asked}
    return [TalkerSequence(by_id[c.prompt_id], c.speech) for c in candidates]


def worst(rows, candidates):
    return max(float((row[: len(c.token_logps)] - torch.tensor(c.token_logps)).abs().max())
               for row, c in zip(rows, candidates, strict=True))


# Upstream's own generate


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3(spread=2.0)


class _StopAt:
    """A logits processor: the stop comes at this step of a row, and never before."""

    def __init__(self, steps):
        self.steps, self.at = steps, 0

    def __call__(self, _ids, scores):
        for row, step in enumerate(self.steps):
            scores[row, STOP] = -torch.inf if self.at < step else 1e4
        self.at += 1
        return scores


def upstream(model, texts, stops, steps=60, seed=0):
    """Run generate; per row its conditioning, frames and stop, and their raw log-probs (T,), (T, 15)."""
    m, thinker, talker = MARK_IDS, model.thinker, model.talker
    prompts = [[m["im_start"], m["user"], m["newline"], *text, m["im_end"], m["newline"], m["im_start"],
                m["assistant"], m["newline"]] for text in texts]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    seen = SimpleNamespace(residual=[])
    generate, predict = talker.generate, talker.code_predictor.generate

    def talked(**options):
        seen.first = generate(**options, output_logits=True)
        return seen.first

    def predicted(**options):
        out = predict(**options, output_logits=True)
        seen.residual.append((out.sequences, torch.stack(out.logits, 1)))
        return out

    talker.generate, talker.code_predictor.generate = talked, predicted
    torch.manual_seed(seed)
    try:
        texts_of = model.thinker.generate

        def thought(*args, **options):
            seen.replies = texts_of(*args, **options)
            return seen.replies

        thinker.generate = thought
        model.generate(input_ids=ids, attention_mask=(ids != 0).long(), speaker="ann", thinker_max_new_tokens=6,
                       thinker_eos_token_id=199, thinker_pad_token_id=0, thinker_do_sample=False,
                       talker_max_new_tokens=steps, talker_logits_processor=[_StopAt(stops)])
    except RuntimeError:
        pass  # upstream cannot decode what has no frames; it was sampled
    finally:
        talker.generate, talker.code_predictor.generate, thinker.generate = generate, predict, texts_of
    embed = thinker.get_input_embeddings().weight
    marks = embed[torch.tensor([m[k] for k in ("im_start", "assistant", "newline", "pad", "bos", "eos")])]
    for row, prompt in enumerate(prompts):
        said = seen.first.sequences[row].tolist()
        frames = said.index(STOP) if STOP in said else len(said) - 1  # a cut sequence loses its last frame
        codes = torch.cat([seen.first.sequences[row, :frames, None],
                           torch.stack([s[row] for s, _ in seen.residual[:frames]])
                           if frames else torch.zeros(0, GROUPS - 1, dtype=torch.long)], dim=1)
        stop = STOP if STOP in said else None
        logits = torch.stack(seen.first.logits, 1)[row][: frames + (stop is not None)]
        first = logits.log_softmax(-1).gather(-1, torch.tensor(said[: len(logits)])[:, None])[:, 0]
        rest = torch.zeros(0, GROUPS - 1)
        if frames:
            raw = torch.stack([logits[row] for _, logits in seen.residual[:frames]]).log_softmax(-1)
            rest = raw.gather(-1, codes[:, 1:, None])[..., 0]
        reply = seen.replies.sequences[row, width:-1]  # what was fed back
        spoken = Conditioning(f"p{row}", marks, embed[torch.tensor(prompt[:-3])], embed[reply], "ann", 2301)
        yield spoken, Speech(codes.flatten().tolist(), stop, CODEC), first, rest


@pytest.mark.parametrize(("texts", "stops"), [
    ([[30, 31, 32, 33]], [0]),
    ([[30, 31, 32, 33]], [4]),
    ([[30, 31, 32, 33]], [100]),
    ([[30], [30, 31, 32, 33], [40, 41, 42]], [4, 45, 0]),
], ids=["stops at once", "stops", "is cut", "batch"])  # fmt: skip
def test_equal_to_upstreams_generate(model, texts, stops):
    policy = TalkerPolicy(model.talker)
    rows = list(upstream(model, texts, stops))
    batch = policy.collate([TalkerSequence(spoken, speech) for spoken, speech, _, _ in rows])
    codes = policy.code_logps(batch)
    for (_, speech, first, rest), forced, stop in zip(rows, codes, stops, strict=True):
        assert speech.frames == (59 if stop == 100 else stop) and speech.steps == len(first)
        assert float((forced[: speech.steps, 0] - first).abs().max()) <= FIRST
        if speech.frames:
            assert float((forced[: speech.frames, 1:] - rest).abs().max()) <= RESIDUAL
        assert not forced[speech.frames :, 1:].any() and not forced[speech.steps :].any()


def test_greedy_codes_are_upstreams(model):
    """The same frames, without a draw in common: layout, stream and the predictor's row are upstream's."""
    policy = TalkerPolicy(model.talker)
    generate, options = model.generate, dict(talker_do_sample=False, talker_repetition_penalty=1.05)
    model.generate = lambda **given: generate(**given, **options)
    try:
        (spoken, speech, _, _), = upstream(model, [[30, 31, 32, 33]], [100], steps=30)
    finally:
        del model.generate
    sampling = SamplingConfig(do_sample=False, repetition_penalty=1.05, max_new_tokens=29,
                              sequence_bias=[([STOP], -1e4)])
    (candidate,) = policy.sample([SampleRequest(spoken, [0])], sampling)
    assert candidate.codes == speech.codes


# The rollouts' own


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("size", [1, 64])
def test_equal_to_the_rollouts_own(talker, weight, size):
    policy = TalkerPolicy(talker, residual_weight=weight)
    asked = requests([(5 + 2 * i, 1 + i % 4) for i in range(4)])
    candidates = policy.sample(asked, SAMPLING)
    assert {"eos", "max_tokens"} <= {c.end_reason for c in candidates}
    examples = sequences(candidates, asked)
    batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    rows, processed = [], []
    with torch.no_grad():
        for part in batches:
            batch = policy.collate(part)
            rows += policy.logps(batch)
            processed += policy.processed_logps(batch, SAMPLING)
            stops = policy.logps_and_stops(batch)
            assert torch.equal(stops[0], policy.logps(batch)) and (stops[1] <= 0).all()
            beside = policy.compared(batch)  # the base beside itself
            assert torch.equal(beside.logps_ST, stops[0]) and torch.equal(beside.stops_ST, stops[1])
            assert torch.equal(beside.ref_logps_ST, stops[0]) and not beside.kl_ST.any()
    bound = FIRST if not weight else GROUPS * FIRST  # as many float errors are summed
    assert worst(rows, candidates) <= bound
    for row, c in zip(processed, candidates, strict=True):
        assert float((row[: len(c.processed_logps)] - torch.tensor(c.processed_logps)).abs().max()) <= bound
    codec = codec_named("qwen3_omni")
    for c in candidates:
        assert codec.invalid(c.codes) is None and len(c.token_logps) == c.speech.steps
        assert c.duration == pytest.approx(c.speech.frames * 0.08)
        assert c.end_reason != "max_tokens" or c.speech.frames == SAMPLING.max_new_tokens  # the cut one's last too


def test_a_candidate_does_not_depend_on_its_neighbors(talker):
    policy = TalkerPolicy(talker)
    asked = requests([(5, 3), (11, 1), (7, 6)], per_prompt=3)
    together = policy.sample(asked, SAMPLING)
    given: list = []
    few = policy.sample(asked, SAMPLING, batch_size=2, ended=given.extend)
    assert sorted(given, key=lambda c: c.candidate_id) == sorted(few, key=lambda c: c.candidate_id)
    alone = policy.sample([SampleRequest(asked[1].conditioning, asked[1].seeds[2:3])], SAMPLING)
    for a, b in [*zip(together, few, strict=True), (together[5], alone[0])]:
        assert (a.codes, a.stop_id) == (b.codes, b.stop_id)
        assert a.token_logps == pytest.approx(b.token_logps, abs=FIRST)


def test_an_immediate_stop_is_a_candidate_without_codes(talker):
    policy = TalkerPolicy(talker)
    asked = requests([(5, 3)], per_prompt=2)
    candidates = policy.sample(asked, SAMPLING.model_copy(update={"sequence_bias": [([STOP], 1e4)]}))
    assert [(c.codes, c.stop_id, c.end_reason, len(c.token_logps)) for c in candidates] == [([], STOP, "empty", 1)] * 2
    with torch.no_grad():
        assert worst(policy.logps(policy.collate(sequences(candidates, asked))), candidates) <= FIRST
        assert policy.code_logps(policy.collate(sequences(candidates, asked))).shape == (2, 1, GROUPS)


def test_packed_rows_are_rows_of_their_own(talker):
    """Behind other prefixes, in any order, beside its prompt's others: the same numbers."""
    policy = TalkerPolicy(talker)
    asked = requests([(18, 5), (25, 9), (4, 1)], per_prompt=2)
    candidates = policy.sample(asked, SAMPLING)
    examples = sequences(candidates, asked)
    with torch.no_grad():
        packed = policy.logps(policy.collate(examples))
        backward = policy.logps(policy.collate(examples[::-1])).flip(0)
        for i, example in enumerate(examples):
            alone = policy.logps(policy.collate([example]))[0]
            for rows in (packed, backward):
                assert float((rows[i, : len(alone)] - alone).abs().max()) <= FIRST


def test_layout_by_hand(talker):
    """The sums of layout.py's table, position by position."""
    (c,) = random_conditionings([(2, 2)])
    frames = [[7 * k + t for k in range(GROUPS)] for t in range(3)]
    batch = collate([TalkerSequence(c, Speech(sum(frames, []), STOP, CODEC))], Specials.of(talker))
    text = lambda row: talker.text_projection(row)  # noqa: E731
    first = talker.model.codec_embedding.weight
    tables = [first, *(t.weight for t in talker.code_predictor.model.codec_embedding)]
    start, assistant, newline, pad, bos, eos = c.marks
    frame = lambda t: sum(table[code] for table, code in zip(tables, frames[t], strict=True))  # noqa: E731
    expected = torch.stack([
        text(c.user[0]), text(c.user[1]), text(start), text(assistant), text(newline),
        text(pad) + first[2155], text(pad) + first[2156], text(pad) + first[2157], text(pad) + first[2301],
        text(bos) + first[2148], text(c.reply[0]) + first[2149],
        text(c.reply[1]) + frame(0), text(eos) + frame(1), text(pad) + frame(2),
    ])  # fmt: skip
    assert torch.allclose(talker_inputs(talker, batch)[0], expected, atol=1e-5)
    assert batch.predictor_ST.tolist() == [[10, 11, 12, 13]] and batch.first_ST.tolist() == [[0, 1, 2, STOP]]
    assert batch.framed_ST.tolist() == [[True, True, True, False]]


def test_what_cannot_be_scored_is_told(talker):
    (c,) = random_conditionings([(2, 2)])
    for codes, stop in (([], None), ([1] * 15, None), ([2048] * 16, None)):
        with pytest.raises(DataError):
            TalkerPolicy(talker).collate([TalkerSequence(c, Speech(codes, stop, CODEC))])
    broken = tiny_talker(seed=1)
    broken.codec_head.weight.fill_(torch.nan)
    with pytest.raises(StageError, match="not finite"):
        TalkerPolicy(broken).sample(requests([(4, 2)]), SAMPLING)


# Adapters and weights


def adapted(weight=0.0, spread=0.1):
    settings = LoraSettings(r=4, lora_alpha=8, target_modules=lora_targets(weight))
    model = attach_lora(tiny_talker(), settings, base_model="tiny").eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, spread, generator=torch.Generator().manual_seed(len(name)))
    return model


def test_an_adapter_is_on_off_saved_and_loaded(talker, tmp_path):
    policy, base = TalkerPolicy(adapted()), TalkerPolicy(talker)
    asked = requests([(6, 3)])
    candidates = policy.sample(asked, SAMPLING)
    examples = sequences(candidates, asked)
    with torch.no_grad():
        on = policy.logps(policy.collate(examples))
        with policy.as_reference():
            off = policy.logps(policy.collate(examples))
        plain = base.logps(base.collate(examples))
    assert worst(on, candidates) <= FIRST
    assert float((off - plain).abs().max()) <= FIRST and float((on - off).abs().max()) > 0.01
    assert policy.reference_identity() == base.reference_identity()
    policy.save(tmp_path / "adapter")
    with torch.no_grad():
        loaded = TalkerPolicy(load_lora(tiny_talker(), tmp_path / "adapter").eval())
        assert torch.equal(loaded.logps(loaded.collate(examples)), on)
        fresh = TalkerPolicy(attach_lora(tiny_talker(), LoraSettings(r=4, lora_alpha=8, target_modules=lora_targets()),
                                         base_model="tiny").eval())
        fresh.load(tmp_path / "adapter")
        assert torch.equal(fresh.logps(fresh.collate(examples)), on)


def test_the_kl_is_of_whole_frames_and_exact():
    """Of codebook 0 and, whatever they weigh, of the residual codes given those before them."""
    policy = TalkerPolicy(adapted())
    asked = requests([(6, 3), (9, 1)])
    examples = sequences(policy.sample(asked, SAMPLING), asked)
    batch = policy.collate(examples)
    beside = policy.compared(batch)
    assert torch.equal(beside.logps_ST, policy.logps(batch).detach())

    def distributions():
        logits_MV, hidden_MH, _ = by_hand.forced(policy.module, batch)
        hidden = by_hand.residual_hidden(policy.module, hidden_MH[batch.framed_ST[batch.mask_ST]], batch.frames_NG)
        heads = unwrap_talker(policy.module).code_predictor.lm_head
        rest = [one(hidden[:, k]).double().softmax(-1) for k, one in enumerate(heads)]
        return [logits_MV.double().softmax(-1), *rest]

    with torch.no_grad():
        mine = distributions()
        with policy.as_reference():
            assert torch.equal(beside.ref_logps_ST, policy.logps(batch))
            theirs = distributions()
    first, *rest = ((p * (p / q).log()).sum(-1) for p, q in zip(mine, theirs, strict=True))
    expected = torch.zeros(batch.mask_ST.shape, dtype=torch.float64).masked_scatter(batch.mask_ST, first)
    expected[batch.framed_ST] += sum(rest)
    assert float((beside.kl_ST - expected).abs().max()) < 1e-5 and float(sum(rest).min()) > 1e-6


def test_full_weights_are_saved_and_loaded(talker, tmp_path):
    policy, other = TalkerPolicy(talker), TalkerPolicy(tiny_talker(seed=3))
    policy.save(tmp_path)
    other.load(tmp_path)
    assert other.reference_identity() == policy.reference_identity()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_every_part_of_the_adapter_learns(weight):
    """With weight 0 the predictor has no adapter: its part would get no gradient."""
    policy = TalkerPolicy(adapted(weight), residual_weight=weight)
    asked = requests([(6, 3)])
    examples = sequences(policy.sample(asked, SAMPLING), asked)
    policy.logps(policy.collate(examples)).sum().backward()
    parts = {n: p.grad for n, p in policy.module.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in parts.values())
    assert any("code_predictor" in n for n in parts) == bool(weight)
