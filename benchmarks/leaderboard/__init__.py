"""The same images and the same processor time for this package and for others, each by its default recipe."""
