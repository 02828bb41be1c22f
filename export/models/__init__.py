"""Models of each framework as one pure function: a module for each, found by what a model is."""
