"""Evaluation: corpus figures with paired-bootstrap intervals, and what is measured but never rewarded."""
