"""Trains with plain Pyro, from top to bottom: SVI with Trace_ELBO on the two programs of a VAE. Half a minute."""

import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue] # created at import
from sklearn.datasets import load_digits

from pyro_vae import mlp_vae
from pyro_vae.likelihoods import Bernoulli

torch.manual_seed(0)
images, _ = load_digits(return_X_y=True)
x = (torch.tensor(images, dtype=torch.float32) > 7).float()  # 1,797 digits of 64 pixels, black or white
vae = mlp_vae((64,), latent_dim=8, likelihood=Bernoulli())
svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
for epoch in range(1, 61):
    losses: list = [svi.step(batch) for batch in x[torch.randperm(len(x))].split(128)]
    if epoch % 10 == 0:
        print(f"epoch {epoch}: ELBO {-sum(losses) / len(x):.2f} nats per datum")
draws = Predictive(vae.model, num_samples=5, return_sites=["x"])(batch_size=1)["x"]
print("draws from the prior predictive:", tuple(draws.shape))
