"""Validation on the user's own installation: analytic shapes through every door and back, with tolerances."""
