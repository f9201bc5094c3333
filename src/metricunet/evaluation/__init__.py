"""How good a segmentation is: measures, the evaluation of whole folders, and a report to look at."""
