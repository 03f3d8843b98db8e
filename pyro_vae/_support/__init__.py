"""Foundations of the library: files, names, arrays, numbers. Nothing here depends on Pyro."""
