"""Training: augmentation, objectives, the loop, calibration, and the run that joins them."""
