"""The same as ``pyro-vae reproduce``."""

from pyro_vae.cli.commands.reproduce import main
from pyro_vae.cli.running import run_command

if __name__ == "__main__":
    run_command(main)
