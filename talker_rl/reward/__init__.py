"""Scoring of candidates: recognizer, error rates, pauses, stability, and the reward made of them.

A score is a value with its components, or a `Failure`. A Failure never becomes a number and never enters a pair.
Importing this package loads neither torch nor a recognizer.
"""
