"""Chapters 13 and 16: the tutorial's networks."""

from reference.models.ocean import Ocean

__all__ = ["Ocean"]
