"""The same as ``pyro-vae evaluate``."""

from pyro_vae.cli.commands.evaluate import main
from pyro_vae.cli.running import run_command

if __name__ == "__main__":
    run_command(main)
