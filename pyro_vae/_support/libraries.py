"""Libraries that hold no part of a user's program, and keep no state that one could lean on."""

__all__ = ["LIBRARIES"]

LIBRARIES = frozenset(
    {
        "_pytest",
        "einops",
        "functorch",
        "jax",
        "lightning",
        "matplotlib",
        "numpy",
        "numpyro",
        "opt_einsum",
        "pandas",
        "PIL",
        "pluggy",
        "pyro",
        "pyro_vae",
        "pyroapi",
        "pytest",
        "pytorch_lightning",
        "safetensors",
        "scipy",
        "sklearn",
        "sympy",
        "torch",
        "torchvision",
        "tqdm",
        "typing_extensions",
        "zuko",
    }
)
