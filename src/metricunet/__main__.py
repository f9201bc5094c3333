"""Run the command line as `python -m metricunet`."""

from metricunet.cli import main

main()
