"""How fast it is. `pytest benchmarks/` shows implementations side by side, `python -m benchmarks` prints ratios."""
