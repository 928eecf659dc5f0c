"""What a run will need, before it gets a GPU: memory in each phase, tokens, time and cost. Arithmetic only.

models   sizes of decoder models, from their config.json
gpus     memory, rates and prices of GPUs
memory   what lies on a GPU in each phase of a step
timing   tokens and seconds of each phase, from stated rates
advice   the setting to change where a phase does not fit

Nothing here was measured on a GPU unless it says so; every assumption is a named constant with its source.
"""
