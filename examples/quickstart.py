"""Load the micro model, sample two candidates, score them, and take the loss of the better against the worse.

    python examples/quickstart.py        (half a minute, no download; README.md shows the same lines)
"""

import talker_rl as t

generator = t.load("micro")  # or a folder, or Qwen/Qwen2.5-Omni-7B
prompt = t.Prompt("orange table, happy river.", speaker="Chelsie")
[seen] = generator.condition([prompt])  # what the Thinker gives the Talker
with generator.policy() as policy:  # or .policy("runs/demo/train/default"), the base with an adapter
    candidates = policy.sample([t.SampleRequest(seen, seeds=[1, 2])], t.SamplingConfig(max_new_tokens=300))
    speech = generator.decode([t.Utterance(c.codes, c.speaker, seed=0) for c in candidates])
    items = [t.ScoreItem.from_candidate(prompt, c, wave) for c, wave in zip(candidates, speech, strict=True)]
    scored = zip(t.Scorer(t.RewardConfig()).score(items), candidates, strict=True)
    (best, chosen), (worst, rejected) = sorted(scored, key=lambda pair: -pair[0].value)
    print(f"rewards {best.value:.3f} and {worst.value:.3f}; heard: {' '.join(best.transcript)}")
    batch = policy.collate([t.TalkerSequence(seen, c.speech) for c in (chosen, rejected)])
    logps, mask = policy.logps(batch), batch.mask_ST  # equal to chosen.token_logps, within 1e-5
    sides = (x[i : i + 1] for x in (logps, logps.detach(), mask) for i in (0, 1))
    print("DPO loss", float(t.build_loss({"type": "dpo", "beta": 0.1})(t.PairBatch(*sides)).loss))  # ln 2: no step yet
