"""DICOM files, and the CT series that they make up: read only where they are certainly one sound scan."""
