"""A case on several ranks: torchrun is its process, the ranks are torchrun's children."""
