"""Ocean Spec."""
