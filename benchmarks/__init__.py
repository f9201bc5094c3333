"""What a maintainer measures: nothing of it is in the wheel."""
