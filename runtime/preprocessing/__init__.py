"""Raw inputs to tensors: what the stages that a manifest declares do. Libraries are imported late."""
