"""The only code that imports verl, Ray or vLLM: plugin entry, reward manager, trainer modes, CPU platform."""
