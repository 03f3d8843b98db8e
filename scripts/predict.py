"""The same as ``pyro-vae predict``."""

from pyro_vae.cli.commands.predict import main
from pyro_vae.cli.running import run_command

if __name__ == "__main__":
    run_command(main)
