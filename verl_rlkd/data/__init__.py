"""Preparing what training reads."""
