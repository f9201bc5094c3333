"""From a scan to a mask with a verdict: locate, crop, segment, paste back, judge."""
