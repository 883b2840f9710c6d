"""Faster forms of the components that a training spends its time in: convolution and pooling.

Each computes what the definition in `reference.nn` says and takes the same arguments, already checked. The same tests
judge both: `reference` offers the fast forms, `reference.definitions` offers every component by its definition.
"""
