"""Where a face is in an image."""
