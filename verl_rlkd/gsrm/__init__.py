"""The Generative Structure Reward Model: a model that writes structures, one that compares them, and their store."""
