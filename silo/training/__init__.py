"""The machinery behind the `train-*` commands."""
