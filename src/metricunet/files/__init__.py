"""The doors: everything that reads or writes files in the formats of the field."""
