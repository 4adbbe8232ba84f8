"""The machinery behind `train-operator` and `train-prior`."""
