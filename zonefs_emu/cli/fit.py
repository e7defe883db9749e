"""``fit``: a timing preset from measurements of a drive."""

from pathlib import Path

import click

from zonefs_emu.cli.common import FILE, say_lines
from zonefs_emu.errors import UsageError
from zonefs_emu.fitting.measurements import read_measurements
from zonefs_emu.fitting.predictions import by_group, errors_of
from zonefs_emu.fitting.search import fit as search
from zonefs_emu.model.timing.parameters import parameters_of
from zonefs_emu.model.timing.timing_presets import ZN540


@click.command()
@click.argument("measurements", metavar="CSV", type=FILE)
def fit(measurements: Path) -> None:
    """Fit the timing model to CSV, measurements of a drive, and print the parameters and the remaining errors.

    \b
    Example:
      zonefs-emu fit measurements.csv

    The search begins at the preset zn540. Parameters that no measurement determines keep its values. docs/timing.md has
    the columns. Needs SciPy: pip install 'zonefs-emu[fit]'.
    """
    try:
        with measurements.open(newline="", encoding="utf-8") as lines:
            points = read_measurements(lines)
    except UnicodeDecodeError:
        message = f"{measurements} is not UTF-8 text"
        raise UsageError(message) from None
    if not points:
        message = f"{measurements} has no row of a kind that is modelled; docs/timing.md has the columns"
        raise UsageError(message)
    parameters = search(points, ZN540, say=lambda group: click.echo(f"searching: {group}", err=True))
    say_lines(
        f"{fact.name}={fact.value!r},  # {fact.unit + ': ' if fact.unit else ''}{fact.meaning}\n"
        for fact in parameters_of(parameters)
    )
    say_lines(
        f"# {row.group}: {row.nr_points} points, mean error {100 * row.mean:.1f} %, "
        f"{100 * row.within:.0f} % of them within 10 %\n"
        for row in by_group(errors_of(parameters, points))
    )
