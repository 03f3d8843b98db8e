"""The same as ``pyro-vae impute``."""

from pyro_vae.cli.commands.impute import main
from pyro_vae.cli.running import run_command

if __name__ == "__main__":
    run_command(main)
