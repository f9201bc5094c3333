"""Studies: arms of a configuration, folds and seeds, and what can be concluded from them."""
