"""Chapters 08 to 14: every layer of a network and every loss, from tensor arithmetic."""
