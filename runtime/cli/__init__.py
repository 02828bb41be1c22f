"""The command line of `python -m runtime`: its parser, and what each command does."""
