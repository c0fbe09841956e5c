"""The documentation: that it builds, that its examples run, and that it has everything that is in the code."""
