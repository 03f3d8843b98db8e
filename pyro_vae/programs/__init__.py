r"""Encoder and decoder, and the two Pyro programs that join the parts: :math:`p(z)\,p(x \mid z)` and
:math:`q(z \mid x)`.

The programs keep a contract that every tool of the library relies on, and so must a user's own programs:

1. a plate ``"data"`` at dim -1, sized by the batch, encloses every site of a row; other plates are left of it, and
   sites outside it are global;
2. the observed site is ``"x"``, and values of other observed sites are keyword arguments;
   ``model(x=None, batch_size=n)`` runs the program forward without data;
3. the guide samples every latent site of the model except those that the model enumerates;
4. everything else (labels, covariates, masks) is a keyword argument, with one entry for each row or the same for all;
   each program gets those that it takes (:mod:`pyro_vae.programs.arguments`);
5. if a program is to be compiled, its results depend on tensors alone.

The modules that a program uses may be kept anywhere (:mod:`pyro_vae.programs.ownership`).
"""  # noqa: D205

from pyro_vae.programs.arguments import accepted, arguments_for, check_arguments, check_mask, check_values
from pyro_vae.programs.latent import Guide, Model
from pyro_vae.programs.ownership import Owned, loose_parameters, modules_of
from pyro_vae.programs.parts import Classifier, Decoder, Encoder
from pyro_vae.programs.recurrent import BackwardEncoder
from pyro_vae.programs.running import evaluating, forked_random_state, local_parameters, site_distribution

__all__ = [
    "BackwardEncoder",
    "Classifier",
    "Decoder",
    "Encoder",
    "Guide",
    "Model",
    "Owned",
    "accepted",
    "arguments_for",
    "check_arguments",
    "check_mask",
    "check_values",
    "evaluating",
    "forked_random_state",
    "local_parameters",
    "loose_parameters",
    "modules_of",
    "site_distribution",
]
