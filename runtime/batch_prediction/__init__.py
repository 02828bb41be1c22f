"""Batch prediction: files of rows in, files of predictions out, complete or to be continued."""
