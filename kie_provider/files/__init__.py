"""What happens to the image files themselves."""
