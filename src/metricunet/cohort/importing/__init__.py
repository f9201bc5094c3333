"""Scans with contours as clinics and public data sets store them, into a cohort.

`layouts` finds out how a folder is laid out; one module for each layout finds the cases in it; `names_file` says
which spelling means which structure; `plan` decides what becomes of each case; `run` writes the cohort; `privacy`
keeps personal data out of every text.
"""

from metricunet.cohort.importing.report import Imported, Spellings
from metricunet.cohort.importing.run import import_cohort, list_names

__all__ = ["Imported", "Spellings", "import_cohort", "list_names"]
