"""Processes, waits, signals and seeds: nothing in here knows of reinforcement learning."""
