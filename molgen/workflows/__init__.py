"""The main jobs, end to end: what the command line and the public functions run."""
