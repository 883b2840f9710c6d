"""Speed: `pytest benchmarks/` compares implementations, `python -m benchmarks` prints ratios."""
