"""What a photo shows of its damage, and how what it shows is kept."""
