"""A page to explore a trained model in the browser."""

from typing import Annotated, Any

import numpy as np
import typer

from pyro_vae.cli import beside, options, reading, runs
from pyro_vae.data.sources import DataSet

EXAMPLES = ("pyro-vae explore runs/digits-mlp", "pyro-vae explore runs/patients-mlp --num-rows 500 --port 5007")


def main(
    run: options.Run,
    data: options.HeldOutData = None,
    data_root: options.DataRoot = None,
    num_rows: Annotated[int, typer.Option(help="Number of rows to show, from the first on.")] = 2000,
    site: Annotated[
        str | None, typer.Option(help="The latent, by its name in the programs. [default: the only one, or z]")
    ] = None,
    umap: Annotated[
        bool, typer.Option("--umap", help="Lay rows out by UMAP instead of the principal directions of the latents.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the page: http://localhost:PORT.")] = 5006,
    device: options.Device = "auto",
) -> None:
    """Serves a page to explore a trained model in the browser.

    It shows the plane of the latents, with the decoder's output under the pointer; rows next to their reconstructions,
    draws like them and their evidence; sliders for latents; and blends of two rows. It needs pip install
    'pyro-vae[explore]'. Press Ctrl-C to stop it. Other machines cannot reach it.
    """
    try:
        from pyro_vae.explorer import Neighbours, Page, Plane, serve
    except ModuleNotFoundError as error:
        raise ImportError("the page needs Bokeh: pip install 'pyro-vae[explore]'") from error

    model = runs.open_run(run, device)
    held = reading.data_for(run, data, data_root)
    rows = beside.first(reading.rows_of(run, held), num_rows)
    page = Page(
        model,
        rows,
        colours=colours(held, num_rows),
        schema=runs.schema_of(run),
        title=f"{run} on {held.name}",
        site=site,
        plane=Neighbours.of if umap else Plane.through,
    )
    server = serve(page, port)
    print(f"http://localhost:{port} shows {len(page.means):,} rows of {held.name}; press Ctrl-C to stop")
    server.run_until_shutdown()


def colours(data: DataSet, num_rows: int) -> dict[str, list[Any]]:
    """What held-out rows can be coloured by: their labels and the columns of their table."""
    found: dict[str, list[Any]] = {}
    if data.table is not None and data.rows_test is not None:
        frame = data.table.frame.iloc[np.asarray(data.rows_test)[:num_rows]]
        found = {str(name): frame[name].tolist() for name in frame}
    if data.y_test is not None:
        names = [*beside.names_of(data), None]
        found["labels"] = [names[code] for code in data.y_test[:num_rows].tolist()]
    return found
