"""Calls that always parse, the tools that are called, and a reply told apart into thought, calls and words."""
