"""Load the micro model, sample two candidates, score them, and take the loss of the better against the worse.

    python examples/quickstart.py        (half a minute, no download; README.md shows the same lines)
"""

import talker_rl as t

omni = t.load_omni(t.ModelConfig(path="micro"))  # or a folder, or Qwen/Qwen2.5-Omni-7B
prompt = t.Prompt("orange table, happy river.", speaker="Chelsie")
[seen] = t.compute_conditioning(omni, [prompt])  # what the Thinker gives the Talker
candidates = t.sample_candidates(omni.talker, [seen], [[1, 2]], t.SamplingConfig(max_new_tokens=300))
speech = t.decode(omni.token2wav, [c.codes for c in candidates], [omni.speaker("Chelsie")] * 2, [0, 0])
items = [t.ScoreItem.from_candidate(prompt, c, wave) for c, wave in zip(candidates, speech, strict=True)]
scored = zip(t.Scorer(t.RewardConfig()).score(items), candidates, strict=True)
(best, chosen), (worst, rejected) = sorted(scored, key=lambda pair: -pair[0].value)
print(f"rewards {best.value:.3f} and {worst.value:.3f}; heard: {' '.join(best.transcript)}")
batch = t.collate([t.TalkerExample(seen, c.codes_with_stop) for c in (chosen, rejected)])
logps, mask = t.token_logps(omni.talker, batch), batch.completion_mask_BT  # equal to chosen.token_logps, within 1e-5
sides = (x[i : i + 1] for x in (logps, logps.detach(), mask) for i in (0, 1))
print("DPO loss", float(t.build_loss({"type": "dpo", "beta": 0.1})(t.PairBatch(*sides)).loss))  # ln 2: no step yet
