"""A fit as a DataTree, and on disk."""
