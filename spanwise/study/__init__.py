"""Studies: measurements of methods, with intervals, for the claims made of them."""
