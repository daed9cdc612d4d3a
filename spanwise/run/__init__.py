"""The run folder, its lock, and trackers of its metrics."""
