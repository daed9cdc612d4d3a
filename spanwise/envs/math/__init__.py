"""Reasoning tasks with one right answer: your question files and reasoning-gym."""
