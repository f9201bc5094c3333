"""`metricunet bench`: speed and memory on this machine, each part against a stated baseline."""
