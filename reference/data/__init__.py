"""Chapters 01 and 03 to 06: data sets, transforms and loaders."""
