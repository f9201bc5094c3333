"""What only a maintainer measures: `python -m benchmarks PART` from the root of the repository.

`metricunet bench` measures what a user wants to know of their machine. Here the product is held against bare
networks, other libraries, its own growth and the machine's peak. All is printed; only temporary files are written.
"""
