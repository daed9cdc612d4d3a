"""What a run leaves behind: its folder, its trackers, its lock."""
