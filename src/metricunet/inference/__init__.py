"""From scans to files: locate, crop, segment, paste back, run again where the crop was too small, and write."""
