"""Finding the scratches, dust and creases of a photo, so that nobody has to paint them."""
