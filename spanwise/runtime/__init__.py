"""Processes, waits, signals, seeds and provenance: nothing here knows reinforcement learning."""
