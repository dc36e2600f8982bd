"""Posteriors with a closed form: find it, prove it, use it."""
