"""The same as ``pyro-vae train``."""

from pyro_vae.cli.commands.train import main
from pyro_vae.cli.running import run_command

if __name__ == "__main__":
    run_command(main)
