"""Replay, live runs under load, and comparison of policies."""
