"""Models of the kinds in NumPyro's examples, notebooks and tests, with what is to come out."""
