"""Kinds of span."""
