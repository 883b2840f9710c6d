"""Mutation testing: small changes of the sources, each of which the everyday tests must detect.

python -m spec.mutation --sample 40 --seed 1 [FILE ...]
"""
