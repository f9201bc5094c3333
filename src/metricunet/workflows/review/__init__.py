"""Reviewing predictions in the browser: look, accept, reject or correct, on this machine alone.

`folder` reads what was predicted, `scans` finds the scans, `opened` puts both on one grid, `decide` writes what
was decided, `desk` joins these, `server` answers the browser, `guard` keeps others out, and `run` is the command.
`learn` takes the reviewed cases into a cohort to train on, `recording` takes them into the ledger, and
`ledger_page` shows that.
The pages are in `static`.
"""

from metricunet.workflows.review.run import review

__all__ = ["review"]
