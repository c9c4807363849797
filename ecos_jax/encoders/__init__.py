"""Public maps from images to features."""
