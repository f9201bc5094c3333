"""DICOM segmentations: written and read."""
