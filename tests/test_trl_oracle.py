"""Our losses on our log-probs against TRL's DPOTrainer on the same Talker and pairs: values and gradients."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="TRL is the oracle here")

import torch  # noqa: E402
import trl_oracle  # noqa: E402
from said import sequence

from talker_rl.losses import PairBatch, build_loss  # noqa: E402
from talker_rl.micro import checkpoint_dir  # noqa: E402
from talker_rl.records.prompt import Prompt  # noqa: E402
from talker_rl.speech.config import ConditioningConfig, ModelConfig  # noqa: E402
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni  # noqa: E402
from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning  # noqa: E402
from talker_rl.speech.qwen2_5_omni.layout import collate  # noqa: E402
from talker_rl.speech.qwen2_5_omni.logps import token_logps  # noqa: E402

LENGTHS = [(7, 4), (3, 9), (6, 6)]
TOLERANCE = 1e-5

CASES = {
    "sigmoid": ({"type": "sigmoid", "beta": 0.1}, {"loss_type": ["sigmoid"], "beta": 0.1}),
    "robust": ({"type": "dpo", "beta": 0.1, "label_smoothing": 0.2, "robust": True},
               {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.2}),
    "ipo": ({"type": "ipo", "beta": 0.2}, {"loss_type": ["ipo"], "beta": 0.2}),
    "hinge": ({"type": "hinge", "beta": 0.05}, {"loss_type": ["hinge"], "beta": 0.05}),
    "sft": ({"type": "sft", "normalize": "token"}, {"loss_type": ["sft"]}),
    "ld_alpha": ({"type": "ld_dpo", "beta": 0.1, "alpha": 0.3}, {"beta": 0.1, "ld_alpha": 0.3}),
    "sigmoid_norm": ({"type": "sigmoid_norm", "beta": 2.0}, {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
    "mixture": (
        {
            "type": "mix",
            "terms": [
                {"weight": 1.0, "loss": {"type": "dpo", "beta": 0.1}},
                {"weight": 0.2, "loss": {"type": "sft", "normalize": "token"}},
            ],
        },
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
    ),
}  # fmt: skip


def random_world():
    """Policy, reference (other random weights: margins of several nats), conditionings, pairs."""
    conditionings = trl_oracle.random_conditionings(len(LENGTHS), seed=3)
    return trl_oracle.tiny_talker(0), trl_oracle.tiny_talker(1), conditionings


def micro_world():
    """The shipped base Talker against the clean one, on the shipped Thinker's conditioning of shipped prompts."""
    folder = checkpoint_dir()
    if not (folder / "omni" / "talker_clean" / "model.safetensors").is_file():
        pytest.skip("the micro checkpoint is not built")
    omni = load_omni(ModelConfig(path=str(folder / "omni"), device="cpu"), parts=("thinker", "talker"))
    clean = load_omni(
        ModelConfig(path=str(folder / "omni"), talker=str(folder / "omni" / "talker_clean"), device="cpu"),
        parts=("talker",),
    )
    words = (folder / "omni" / "words.txt").read_text(encoding="utf-8").split()
    speaker = sorted(omni.speakers)[0]
    prompts = [Prompt(text=" ".join(words[i : i + 3 + i]) + ".", speaker=speaker) for i in range(len(LENGTHS))]
    conditionings = compute_conditioning(omni, prompts, ConditioningConfig())
    return omni.talker.requires_grad_(True), clean.talker, conditionings


@pytest.fixture(scope="module", params=[random_world, micro_world], ids=["random", "micro"])
def world(request):
    """(policy, reference, conditionings, pairs)"""
    return *request.param(), trl_oracle.random_pairs(LENGTHS, seed=2)


def our_batch(talker, reference, conditionings, pairs) -> PairBatch:
    """Log-probs as the package computes them: chosen and rejected of a prompt behind one prefix."""
    examples = [sequence(conditionings[p.conditioning], codes) for p in pairs for codes in (p.chosen, p.rejected)]
    batch = collate(examples)
    policy = token_logps(talker, batch)
    with torch.no_grad():
        ref = token_logps(reference, batch)
    mask = batch.completion_mask_BT
    return PairBatch(policy[::2], policy[1::2], ref[::2], ref[1::2], mask[::2], mask[1::2])


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_trls(case, world, tmp_path):
    ours, theirs = CASES[case]
    talker, reference, conditionings, pairs = world
    oracle = trl_oracle.trl_loss_and_gradients(talker, reference, conditionings, pairs, tmp_path, **theirs)

    out = build_loss(ours)(our_batch(talker, reference, conditionings, pairs))
    talker.zero_grad()
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in talker.named_parameters() if p.grad is not None}
    talker.zero_grad()

    assert abs(out.loss.item() - oracle.loss) <= TOLERANCE * max(1, abs(oracle.loss))
    assert gradients.keys() == oracle.gradients.keys() and len(gradients) > 10
    scale = max(g.abs().max().item() for g in oracle.gradients.values())
    assert scale > 1e-3  # otherwise equality would say nothing
    worst = max((gradients[name] - g).abs().max().item() for name, g in oracle.gradients.items())
    assert worst <= TOLERANCE * max(1, scale)
    print(f"{case}: loss {out.loss.item():.6f}, {abs(out.loss.item() - oracle.loss):.1e} off;"
          f" gradients up to {scale:.2f}, {worst:.1e} off")  # fmt: skip

    if case == "ld_alpha":  # TRL reports weighted sums as logps there, we report plain ones
        names = [name for name in out.metrics if name.startswith("rewards/")]
    else:
        names = [name for name in out.metrics if name.split("/")[0] in ("rewards", "logps")]
    assert len(names) >= 2
    for name in names:
        # TRL subtracts float32 sums of ~60 nats (and multiplies by beta), so its own metrics are good to 1e-5 * beta.
        assert out.metrics[name].item() == pytest.approx(oracle.metrics[name], rel=1e-5, abs=1e-4), name


def test_the_oracle_can_fail(world, tmp_path):
    """A wrong beta or a forgotten stop is seen: the comparison is not vacuous."""
    talker, reference, conditionings, pairs = world
    config = {"loss_type": ["sigmoid"], "beta": 0.1}
    oracle = trl_oracle.trl_loss_and_gradients(talker, reference, conditionings, pairs, tmp_path, **config)
    batch = our_batch(talker, reference, conditionings, pairs)
    assert abs(build_loss({"type": "dpo", "beta": 0.11})(batch).loss.item() - oracle.loss) > 100 * TOLERANCE
    without_stop = [type(p)(p.conditioning, p.chosen[:-1], p.rejected) for p in pairs]
    batch = our_batch(talker, reference, conditionings, without_stop)
    assert abs(build_loss({"type": "dpo", "beta": 0.1})(batch).loss.item() - oracle.loss) > 100 * TOLERANCE
