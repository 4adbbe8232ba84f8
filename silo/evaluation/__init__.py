"""The parts of `python -m silo evaluate`: what is measured, its record, tables, plot and sheets."""
