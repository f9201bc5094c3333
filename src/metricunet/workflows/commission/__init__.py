"""Commissioning of an installation: analytic shapes through every door and back, with tolerances."""
