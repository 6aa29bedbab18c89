"""Reference log-probs: right, cached, and never stale."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from said import said, sequence
from train_helpers import make_config, make_generator, make_omni, make_pairs

from talker_rl.base.errors import StageError, TrainingError
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy
from talker_rl.train.collate import Collator, Example
from talker_rl.train.reference import reference_logps
from talker_rl.train.run import train_variant
from talker_rl.train.sources import by_prompt, fit_length


@pytest.fixture
def world():
    pairs, conditionings = make_pairs(6)
    return make_omni(), pairs, by_prompt(conditionings, pairs)


def compute(omni, pairs, found, folder, **options):
    return reference_logps(TalkerPolicy(options.pop("talker", omni.talker)), pairs, found, folder, **options)


def test_values_are_the_policys_own(world, tmp_path):
    omni, pairs, found = world
    references, _ = compute(omni, pairs, found, tmp_path, batch_size=5)
    for pair, (chosen, rejected) in zip(pairs, references, strict=True):
        for codes, got in ((pair.chosen, chosen), (pair.rejected, rejected)):
            alone = token_logps(omni.talker, collate([sequence(found[pair.prompt_id], codes)]))[0]
            assert got.shape == (codes.steps,) and got.dtype == torch.float32
            torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_hits_after_a_second_call_and_only_what_is_new_is_computed(world, tmp_path):
    omni, pairs, found = world
    first, counts = compute(omni, pairs, found, tmp_path)
    assert counts == {"hit": 0, "computed": 12}
    second, counts = compute(omni, pairs, found, tmp_path)
    assert counts == {"hit": 12, "computed": 0}
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    changed = [replace(pairs[0], rejected=said([*pairs[0].rejected.codes, 5, 8294])), *pairs[1:]]
    third, counts = compute(omni, changed, found, tmp_path)
    assert counts == {"hit": 11, "computed": 1}
    assert len(third[0][1]) == changed[0].rejected.steps


def test_never_stale_when_weights_conditioning_adapter_or_precision_change(world, tmp_path):
    omni, pairs, found = world
    compute(omni, pairs, found, tmp_path)
    with torch.no_grad():
        omni.talker.codec_head.weight[0, 0] += 1e-3
    _, counts = compute(omni, pairs, found, tmp_path)
    assert counts["computed"] == 12
    other = dict(found)
    other[pairs[0].prompt_id] = copy.deepcopy(found[pairs[0].prompt_id])
    other[pairs[0].prompt_id].reply_stream[0, 0] += 1e-3
    _, counts = compute(omni, pairs, other, tmp_path)
    assert counts == {"hit": 10, "computed": 2}
    _, counts = compute(omni, pairs, found, tmp_path, bf16=True)
    assert counts["computed"] == 12


def test_a_fresh_adapter_shares_the_bases_reference_even_after_it_was_trained(world, tmp_path):
    omni, pairs, found = world
    base, _ = compute(omni, pairs, found, tmp_path)
    model = attach_lora(omni.talker, LoraSettings(r=2), base_model="tiny")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    again, counts = compute(omni, pairs, found, tmp_path, talker=model)
    assert counts == {"hit": 12, "computed": 0}
    fresh, counts = compute(omni, pairs, found, tmp_path / "other", talker=model)
    assert counts["computed"] == 12
    torch.testing.assert_close(fresh[0][0], base[0][0], atol=1e-6, rtol=0)


def test_a_starting_adapter_is_its_own_reference(tmp_path):
    pairs, conditionings = make_pairs(8)
    generator = make_generator()
    cache = tmp_path / "cache"
    settings = {"args": {"max_steps": 3, "learning_rate": 3e-2}}
    train_variant(generator, pairs, conditionings, make_config(**settings), tmp_path / "one", progress=False,
                  reference_cache=cache)  # fmt: skip
    second = train_variant(generator, pairs, conditionings, make_config(**settings), tmp_path / "two", progress=False,
                           reference_cache=cache, start_adapter=tmp_path / "one")  # fmt: skip
    assert second["reference"]["computed"] == 16  # nothing of the base's is taken for the adapter's
    from train_helpers import losses

    # The policy begins where its reference is: ln 2, while against the base it would have moved.
    assert losses(tmp_path / "two")[0][1] == pytest.approx(0.693147, abs=1e-5)
    assert losses(tmp_path / "one")[-1][1] < 0.67
    third = train_variant(generator, pairs, conditionings, make_config(**settings), tmp_path / "three", progress=False,
                          reference_cache=cache, start_adapter=tmp_path / "two")  # fmt: skip
    assert third["reference"]["computed"] == 16


def test_the_hash_ignores_where_lora_layers_hang(world):
    omni, _, _ = world
    bare = TalkerPolicy(omni.talker).reference_identity()
    model = attach_lora(omni.talker, LoraSettings(r=2), base_model="tiny")
    assert TalkerPolicy(model).reference_identity() == bare
    assert TalkerPolicy(make_omni(1).talker).reference_identity() != bare


def test_a_damaged_cache_file_is_computed_again(world, tmp_path):
    omni, pairs, found = world
    compute(omni, pairs, found, tmp_path)
    (file,) = tmp_path.glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="computed again"):
        _, counts = compute(omni, pairs, found, tmp_path)
    assert counts["computed"] == 12
    assert compute(omni, pairs, found, tmp_path)[1]["hit"] == 12


def test_nan_conditioning_is_named(world, tmp_path):
    omni, pairs, found = world
    found[pairs[2].prompt_id].prefix[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=pairs[2].prompt_id):
        compute(omni, pairs, found, tmp_path)


def test_missing_conditioning_is_named(world):
    _, pairs, found = world
    del found[pairs[1].prompt_id]
    with pytest.raises(StageError, match=pairs[1].prompt_id):
        by_prompt(found, pairs)


def test_collate_puts_references_where_the_codes_are(world):
    omni, pairs, found = world
    examples = [
        Example(p.pair_id, [sequence(found[p.prompt_id], side) for side in p.sides],
                [torch.arange(side.steps) + first for side, first in zip(p.sides, (100.0, 200.0), strict=True)])
        for p in pairs[:3]
    ]  # fmt: skip
    inputs = Collator(TalkerPolicy(omni.talker))(list(enumerate(examples)))
    assert set(inputs) == {"index", "batch"}  # no `labels`, no loose float tensor
    batch = inputs["batch"]
    assert batch.group_S.tolist() == [0, 1, 2] * 2 and batch.side_S.tolist() == [0] * 3 + [1] * 3
    for i, pair in enumerate(pairs[:3]):
        for row, speech, ref in ((i, pair.chosen, 100.0), (i + 3, pair.rejected, 200.0)):
            mask = batch.talker.mask_ST[row]
            assert batch.talker.codes_BT[row][mask].tolist() == speech.ids
            assert batch.ref_logps_ST[row][mask].tolist() == [ref + k for k in range(speech.steps)]
            assert bool(batch.stopped_S[row]) == speech.stopped


def test_shares_are_parts_of_one_batch(world):
    omni, pairs, found = world
    examples = [Example(p.pair_id, [sequence(found[p.prompt_id], side) for side in p.sides]) for p in pairs[:5]]
    whole = Collator(TalkerPolicy(omni.talker))(list(enumerate(examples)))["batch"]
    parts = [Collator(TalkerPolicy(omni.talker), 3, rank)(list(enumerate(examples)))["batch"] for rank in range(3)]
    assert sum((part.names for part in parts), []) == whole.names == parts[1].whole
    assert sum(part.weight for part in parts) == pytest.approx(3) and whole.weight == 1 and whole.share is None
    assert [part.share.first for part in parts] == [0, 1, 3]
    assert {(part.share.pairs, part.share.chosen_tokens, part.share.longest) for part in parts} == {
        (5, sum(p.chosen.steps for p in pairs[:5]), max(side.steps for p in pairs[:5] for side in p.sides))}
    few = [Collator(TalkerPolicy(omni.talker), 3, rank)([(4, examples[4])])["batch"] for rank in range(3)]
    assert [part.weight for part in few] == [0, 0, 3] and all(len(part) == 1 for part in few)  # two only fill a turn


def test_max_length_cuts_rejected_and_drops_chosen():
    pairs, _ = make_pairs(20)
    kept, counts = fit_length(pairs, 8)
    assert counts["chosen_too_long"] == sum(p.chosen.steps > 8 for p in pairs) > 0
    assert counts["rejected_cut"] == sum(p.chosen.steps <= 8 < p.rejected.steps for p in pairs) > 0
    assert len(kept) == len(pairs) - counts["chosen_too_long"]
    assert all(p.chosen.steps <= 8 and p.rejected.steps <= 8 for p in kept)
    assert all(p.chosen.stop_id == 8294 for p in kept)
    assert fit_length(pairs, None)[0] == pairs
