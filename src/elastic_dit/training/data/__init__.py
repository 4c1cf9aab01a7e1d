"""Image-caption data: what we prepare ourselves and how any such data is read."""
