"""Calls that always parse, and the tools that are called."""
