"""The command line: ``pyro-vae train``, ``pyro-vae evaluate RUN`` and so on, each a file in ``commands``."""
