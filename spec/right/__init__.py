"""Right implementations that differ from PyTorch where its documentation leaves it open; none may be refused.

`spec/test_right.py` tests each of them. They are to the specification what `spec/faults` is on the other side.
"""
