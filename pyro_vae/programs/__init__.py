r"""Encoder and decoder, and the two Pyro programs that join the parts: :math:`p(z)\,p(x \mid z)` and
:math:`q(z \mid x)`.

The programs keep the contract that every tool of the library relies on, for a user's own programs too:

- a plate ``"data"`` at dim -1, sized by the batch, around every per-datum site; sites outside it are global;
- the observed site is ``"x"``; ``model(x=None, batch_size=n)`` runs the program forward without data;
- the guide samples every latent site of the model; ``"z"`` is the one that ``encode`` speaks of;
- anything else (labels, covariates, masks) comes as keyword arguments given to both, with the batch first.
"""  # noqa: D205

from pyro_vae.programs.arguments import accepted, arguments_for, check_arguments, check_values
from pyro_vae.programs.latent import Guide, Model
from pyro_vae.programs.ownership import Owned, loose_parameters, modules_of
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.programs.running import evaluating, forked_random_state, local_parameters, site_distribution

__all__ = [
    "Decoder",
    "Encoder",
    "Guide",
    "Model",
    "Owned",
    "accepted",
    "arguments_for",
    "check_arguments",
    "check_values",
    "evaluating",
    "forked_random_state",
    "local_parameters",
    "loose_parameters",
    "modules_of",
    "site_distribution",
]
