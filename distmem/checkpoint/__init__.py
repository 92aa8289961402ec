"""Checkpoints: one canonical layout for every backend and world size, atomic and verified."""
