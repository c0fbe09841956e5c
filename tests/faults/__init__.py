"""Faults that are made for real, in leaders, databases and layers, while writers go on."""
