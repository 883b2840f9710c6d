"""Faster forms of the components that take most of the time of a training: convolution and pooling.

Each computes the same result as the definition in `reference.nn`, from the same arguments, which the caller has
checked. The tests judge both: `reference` offers the fast forms, `reference.definitions` offers every component by its
definition.
"""
