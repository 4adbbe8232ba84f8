"""The subcommands of `python -m silo` that have no module of their own elsewhere."""
