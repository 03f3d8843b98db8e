"""How long it takes from the command to a test ELBO of −100 nats."""

import json
from pathlib import Path

from pyro_vae.results.row import Row, spread
from pyro_vae.results.stored import records

TITLE = "Time to quality"
ABOUT = """Whole processes on MNIST, imports and compilation included: an MLP, 784-400-50, batches of 128, 20 epochs.
All evaluate the test rows after every epoch; some end just short of −100 nats. From the benchmark's runs
(`docs/benchmarks/`, from `scripts/benchmark.py --only whole --rounds 5`), which take turns; behind ± is the standard
deviation over rounds. Cold means that nothing had been compiled on the machine before, warm that the same training
had. How it is measured: [benchmarks](benchmarks/README.md)."""
DIGITS = 1
FORMS = ("short",)  # it is counted from records


def rows(*, short: bool, root: Path) -> list[Row]:
    """Seconds of every contender on every machine."""
    found: list[Row] = []
    for path in sorted(records("benchmarks").glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        whole = results["sections"].get("whole", {"contenders": {}})
        for name, row in whole["contenders"].items():
            reached = [seconds for seconds in row["to_goal"] if seconds is not None]
            found.append(
                {
                    "": name,
                    "machine": f"{results['machine']['cpu']} with {results['machine']['vectors']}",
                    "seconds to −100 nats": spread(reached) if reached else None,
                    "rounds that reached it": f"{len(reached)} of {len(row['to_goal'])}",
                    "seconds, 20 epochs": spread(row["seconds"]),
                    "test ELBO, nats": spread(row["elbo"]),
                }
            )
    return found
