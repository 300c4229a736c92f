"""The command line: one file a subcommand, each with `register(app)`; `main` is the console script."""
