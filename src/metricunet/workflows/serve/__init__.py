"""A DICOM node: scans come in from the network, structure sets go back."""
