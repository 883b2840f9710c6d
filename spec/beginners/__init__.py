"""What a learner writes: each file passes its chapter at level tutorial (`spec/test_beginners.py`)."""
