"""The command line: one thin function for each command. Heavy imports happen inside these functions.

A module has one command, or those that belong together. `program` registers them in the order of the help, and
says in one line what went wrong; `naming` has messages name an argument by the flag of the called command;
`options` are those that several commands share, and `terminal` is how they print and end.
"""

from metricunet.cli.naming import flags_of
from metricunet.cli.program import LEFT_OUT, app, main
from metricunet.cli.terminal import progress_bars

__all__ = ["LEFT_OUT", "app", "flags_of", "main", "progress_bars"]
