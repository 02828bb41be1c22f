"""JSON values to arrays and back: instances, tensors, predictions. Pure functions."""
