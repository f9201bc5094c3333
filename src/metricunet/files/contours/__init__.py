"""Outlines of masks and masks of outlines: plain geometry in one plane, which knows nothing of files."""
