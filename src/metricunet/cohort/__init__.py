"""A cohort on disk: scans with their contours in nnU-Net's raw layout."""
