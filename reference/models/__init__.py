"""Chapters 13 and 16: the tutorial's networks."""

from reference.models.ocean import Ocean
from reference.models.vgg import VGG, append_classifier, replace_classifier, vgg16

__all__ = ["VGG", "Ocean", "append_classifier", "replace_classifier", "vgg16"]
