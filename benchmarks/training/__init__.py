"""The speed of the tutorial's training: `python -m benchmarks.training [FIGURE …]`."""
