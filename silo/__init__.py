"""How a picture is restored: pictures in and out, the prior, the samplers and the `Restorer`."""
