"""Right implementations that differ from PyTorch in undocumented behaviour; the specification must accept all of them.

`spec/test_right.py` tests each of them. They are the counterpart of `spec/faults`.
"""
