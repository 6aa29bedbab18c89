"""The micro Talkers' training: layout against transformers' generate, the sampled loss, the label noise."""

from __future__ import annotations

import math
import random

import pytest
import torch

from talker_rl.micro import lexicon
from talker_rl.micro.corpus import default_pauses
from talker_rl.micro.noise import spoken_words, stumble
from talker_rl.micro.prompts import prompt_sentences, prompt_texts
from talker_rl.micro.talker import (
    CODEC_EOS,
    Speech,
    batches,
    collate,
    new_talker,
    register_training_attention,
    sample,
)
from talker_rl.micro.talker_losses import sampled_loss


@pytest.fixture(scope="module")
def talker():
    torch.manual_seed(0)
    model = new_talker().eval()
    with torch.no_grad():  # livelier than the initial weights, so that a wrong layout shows
        for p in model.parameters():
            p.mul_(3.0)
    return model


def _speech(prefix: int, reply: int, seed: int) -> Speech:
    g = torch.Generator().manual_seed(seed)
    return Speech(torch.randn(prefix, 128, generator=g), torch.randn(reply, 128, generator=g))


def test_teacher_forcing_is_what_generate_does(talker) -> None:
    speech = [_speech(7, 3, 1), _speech(11, 5, 2)]
    rows = sample(talker, speech, max_new_tokens=9, do_sample=False)
    inputs, targets = collate(speech, rows, [False, False], talker.model.embed_tokens)
    with torch.no_grad():
        hidden = talker.model(
            inputs_embeds=talker.thinker_to_talker_proj(inputs),
            position_ids=torch.arange(inputs.shape[1]).expand(3, 2, -1),
            use_cache=False,
        ).last_hidden_state
        choice = talker.codec_head(hidden)
    choice[..., 8293] = -math.inf
    for i, row in enumerate(rows):
        at = targets[i] != -100
        assert targets[i][at].tolist() == [*row, CODEC_EOS]
        assert choice[i][at].argmax(-1).tolist()[: len(row)] == row


def test_training_attention_equals_sdpa(talker) -> None:
    register_training_attention()
    generator = torch.Generator().manual_seed(3)
    x, positions = torch.randn(2, 13, 128, generator=generator), torch.arange(13).expand(3, 2, -1)
    with torch.no_grad():
        want = talker.model(inputs_embeds=x, position_ids=positions, use_cache=False).last_hidden_state
        talker.set_attn_implementation("micro_training")
        got = talker.model(inputs_embeds=x, position_ids=positions, use_cache=False).last_hidden_state
        talker.set_attn_implementation("sdpa")
    # The enlarged weights enlarge rounding too; another layout or scale would differ by whole units.
    assert torch.allclose(want, got, atol=1e-4)


def test_sampled_loss_estimates_the_full_cross_entropy(monkeypatch) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 900, bias=False)
    hidden, used = torch.randn(64, 16), torch.arange(100)
    rest, targets = torch.arange(100, 900), torch.randint(100, (64,))
    full = torch.nn.functional.cross_entropy(head(hidden), targets)
    generator = torch.Generator().manual_seed(0)
    draws = [sampled_loss(hidden, targets, head, used, rest, generator).item() for _ in range(50)]
    assert sum(draws) / 50 == pytest.approx(full.item(), abs=0.02)
    monkeypatch.setattr("talker_rl.micro.talker_losses.NEGATIVES", 800)
    assert sampled_loss(hidden, targets, head, used, rest, generator).item() == pytest.approx(full.item(), abs=0.01)


def test_batches_cover_every_example_once() -> None:
    from talker_rl.micro.talker import Example

    examples = [Example(str(i), "Ethan", [0] * (i % 17)) for i in range(101)]
    seen = [e.text for group in batches(examples, 8, random.Random(0)) for e in group]
    assert sorted(seen) == sorted(e.text for e in examples)


def test_noise_rates_match_the_tables() -> None:
    rng, n = random.Random(0), 4000
    word, (other, rate) = next(iter(lexicon.CONFUSED.items()))
    said = [spoken_words(("garden", word), rng) for _ in range(n)]
    assert sum(s == ("garden", other) for s in said) / n == pytest.approx(rate, abs=0.03)
    word, rate = next(iter(lexicon.DOUBLED.items()))
    assert sum(spoken_words((word,), rng) == (word, word) for _ in range(n)) / n == pytest.approx(rate, abs=0.03)
    word, rate = next(iter(lexicon.DROPPED.items()))
    said = [spoken_words(("garden", word), rng) for _ in range(n)]
    assert sum(s == ("garden",) for s in said) / n == pytest.approx(rate, abs=0.03)
    assert spoken_words((word,), random.Random(1)) == (word,)


def test_words_without_noise_are_said_as_written() -> None:
    clauses = [lexicon.Clause("en", ("music", "bottle"), ","), lexicon.Clause("en", ("happy", "music"), ".")]
    plain = [c.words for c in clauses]
    for seed in range(200):
        spoken = stumble(clauses, "Ethan", random.Random(seed))
        said = [c.words for c in spoken.request.clauses]
        assert said == plain or "happy" in said[1][:1] and said[1].count("happy") == 2
        assert spoken.request.pauses == default_pauses(clauses)
        assert (spoken.stumbles > 0) == (said != plain)


def test_every_kind_of_noise_occurs() -> None:
    rng, noise = random.Random(3), random.Random(4)
    lost = false = tails = cuts = words = 0
    for _ in range(2000):
        clauses = lexicon.random_sentence(rng)
        spoken = stumble(clauses, "Ethan", noise)
        request = spoken.request
        lost += 0.0 in (request.pauses or [])
        false += request.extra_pauses is not None
        tails += request.tail == lexicon.LONG_TAIL_SECONDS
        cuts += spoken.cut_seconds > 0
        words += [c.words for c in request.clauses] != [c.words for c in clauses]
    assert min(lost, false, tails, cuts) > 20 and words > 400


def test_prompt_sets_are_disjoint() -> None:
    splits = prompt_sentences()
    assert {k: len(v) for k, v in splits.items()} == {"train": 2000, "dev": 120, "eval": 200}
    assert len(prompt_texts()) == 2320
