"""Measurements: speed beside other projects, and how much recipes learn."""
