"""The command line: ``pyro-vae train``, ``pyro-vae evaluate RUN`` and so on, one file each in ``commands``."""
