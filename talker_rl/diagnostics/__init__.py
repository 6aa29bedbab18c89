"""Diagnostics: does training change how long the Talker speaks, and does its speech fall apart? Numbers from records.

Every function here is pure: records in (rows as the stages store them), figures out. A figure that cannot be computed
(nothing there, one point, no variation) is None, never NaN, and a line in ``notes`` says why. Durations are seconds,
codes over the codec's rate, the stop not counted; log-probs are natural logs, summed over a completion with its stop.
"""
