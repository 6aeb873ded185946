"""The large comparisons with other packages, each with its own plan."""
