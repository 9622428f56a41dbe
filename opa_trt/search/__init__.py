"""Encodings, predictors of accuracy and latency, and searches over whole populations (offline)."""
