"""The tables of docs/results.md, one file each: what is compared, how, published numbers, and the code for its rows."""

from pyro_vae.results import (
    calibration,
    cells,
    clusters,
    counts,
    estimators,
    iwae,
    linear,
    missing,
    priors,
    rate_distortion,
    semi_supervised,
    time_to_quality,
)

TABLES = {
    "linear": linear,
    "iwae": iwae,
    "priors": priors,
    "estimators": estimators,
    "rate-distortion": rate_distortion,
    "missing": missing,
    "semi-supervised": semi_supervised,
    "clusters": clusters,
    "calibration": calibration,
    "counts": counts,
    "cells": cells,
    "time-to-quality": time_to_quality,
}
