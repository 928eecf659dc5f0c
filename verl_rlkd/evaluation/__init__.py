"""Whether a model is good, and pages that show it."""
