"""Training: augmentation, objectives, the two Lightning modules, and the run that joins them."""
