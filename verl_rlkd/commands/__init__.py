"""The subcommands of ``verl-rlkd``, one module each: options, output, exit code. The work is done elsewhere."""
