"""How a picture is restored: pictures in and out, the prior, the samplers and the `Restorer`."""

# Raised whenever a restoration's or a measurement's numbers change: results of another version are
# not taken for done.
__version__ = "0.15.0"
