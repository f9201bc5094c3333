"""DICOM RT structure sets: written, read, added to, and moved by a registration."""
