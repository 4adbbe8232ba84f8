"""What degrades a picture: pixel-space degradations and the latent operators that imitate them."""
