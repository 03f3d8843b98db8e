"""What the rest of the library stands on: files, names, arrays, numbers. Nothing here knows Pyro."""
