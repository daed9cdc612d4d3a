"""Policies and what is read off them: loading, scoring, the small base models."""
