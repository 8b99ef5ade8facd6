"""Image files: inputs that are uploaded, results that are checked and saved."""
