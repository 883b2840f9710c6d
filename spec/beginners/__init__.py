"""Solutions as learners write them: each file passes its chapter at level tutorial (`spec/test_beginners.py`)."""
