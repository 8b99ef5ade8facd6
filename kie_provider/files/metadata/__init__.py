"""Metadata inside image files: EXIF, XMP and PNG text. Needs the standard library only."""
