"""What strings the rooms together: whole jobs behind single commands."""
