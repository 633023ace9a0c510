"""Compiled operators: one folder each. __init__ checks and records, reference defines, cpu computes."""
