from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Features: TypeAlias = "Sequence[Mapping[str, Any]] | Schema"
Text: TypeAlias = bytes | str

__version__: str

class Error(ValueError): ...
class RefusedError(Error): ...

class Bundle:
    """What `residuald.Bundle` is made of."""

    @staticmethod
    def load(
        path: str | PathLike[str],
        threads: int | None,
        false_alarm_rate: float | None,
        threshold: float | None,
        cuda: bool,
    ) -> Bundle: ...
    @property
    def sha256(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def by_key(self) -> bool: ...
    def score(
        self,
        table: Table,
        keys: Sequence[str | None] | None,
        explain: str,
        most: int,
        progress: Callable[[int], object] | None,
    ) -> dict[str, Any]: ...
    def score_files(
        self,
        files: Sequence[str],
        key: str | None,
        wrapped: tuple[list[str], str, bool],
        explain: str,
        most: int,
        progress: Callable[[int], object] | None,
    ) -> dict[str, Any]: ...
    def score_arrow(
        self, data: object, explain: str, most: int, progress: Callable[[int], object] | None
    ) -> dict[str, Any]: ...
    def score_images(
        self,
        images: Sequence[Text],
        explain: str,
        most: int,
        maps: bool,
        bit_depth: int,
        progress: Callable[[int], object] | None,
    ) -> dict[str, Any]: ...

class Scheduler:
    """A sampler of a diffusion model, from the fields of a diffusers `scheduler_config.json` (0.42.1).

    `class_name` replaces the configuration's `_class_name`. `eta`, from 0 to 1, is how much noise DDIM adds. Raises
    Error for an unknown class or value.
    """

    def __init__(self, config: Mapping[str, Any], class_name: str | None = None, eta: float = 0.0) -> None: ...
    @property
    def class_name(self) -> str: ...
    @property
    def ignored(self) -> list[str]:
        """The fields of the configuration that the class does not have."""
    @property
    def alphas_cumprod(self) -> NDArray[np.float32]:
        """How much of the squared sample is left at each timestep of the training, [T]."""
    def timesteps(self, steps: int) -> NDArray[np.float32]:
        """The timesteps of so many steps, descending, [steps]. Whole but for the Euler schedulers."""
    def run(self, steps: int) -> Run: ...

class Run:
    """One batch on its way from noise to samples. Arrays are float32 [N, ...]: N samples of any shape."""

    def __len__(self) -> int: ...
    @property
    def timesteps(self) -> NDArray[np.float32]: ...
    @property
    def init_noise_sigma(self) -> float:
        """What standard normals are multiplied with to be the initial sample."""
    def adds_noise(self, i: int) -> bool:
        """Whether step i adds noise."""
    def scale_input(self, i: int, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model gets as sample in step i."""
    def add_noise(self, i: int, clean: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """The noisy sample with which step i begins, for a clean one."""
    def step(
        self,
        i: int,
        output: NDArray[np.float32],
        sample: NDArray[np.float32],
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The sample after step i. `output` is the model's, of the sample's size, or twice with a learned variance."""

class Schema:
    def __init__(self, features: Features) -> None: ...
    def __len__(self) -> int: ...
    def decode(self, record: Text) -> NDArray[np.float32]: ...

class Table:
    def __init__(self, records: Sequence[Text]) -> None: ...
    @staticmethod
    def from_rows(paths: Sequence[str], rows: NDArray[np.float64]) -> Table: ...
    @staticmethod
    def from_arrow(data: object) -> Table: ...
    def __len__(self) -> int: ...
    @property
    def paths(self) -> list[str]: ...
    @property
    def files(self) -> list[dict[str, Any]]: ...
    @property
    def notes(self) -> list[str]: ...
    def record(self, row: int) -> bytes: ...
    def take(self, rows: NDArray[np.int64]) -> Table: ...
    def encode(self, schema: Features) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, int]]: ...
    def opened(self, envelope: Sequence[str], allow_nan: bool) -> tuple[Table, dict[int, tuple[str, str]]]: ...
    def texts(self, path: str) -> list[str | None]: ...
    def numbers(self, path: str) -> NDArray[np.float64]: ...
    def is_normal(self, path: str, normal: str) -> NDArray[np.bool_]: ...
    def segments(self, path: str) -> list[str | None]: ...
    def infer(
        self, leave_out: Sequence[str] = ..., keep: Sequence[str] = ..., missing: Sequence[str | float] = ...
    ) -> tuple[list[dict[str, Any]], list[str]]: ...
    def describe(
        self, leave_out: Sequence[str] = ..., keep: Sequence[str] = ..., missing: Sequence[str | float] = ...
    ) -> list[dict[str, Any]]: ...

def check_schema(features: Features) -> list[dict[str, Any]]: ...
def read(
    files: str | PathLike[str] | Sequence[str | PathLike[str]],
    max_rows: int | None = None,
    seed: int = 0,
    progress: Callable[[Path, int, int, str], object] | None = None,
    format: str | None = None,
    envelope: Sequence[str] = (),
    unwrap: str = "none",
    allow_nan: bool = False,
) -> Table: ...
def normals(seed: int, samples: Sequence[int], draws: int, dimensions: int) -> NDArray[np.float32]:
    """Standard normals [draws, N, dimensions]. Those of a sample depend on the seed and its number alone."""

def use_library(path: str | PathLike[str]) -> None: ...
def select(record: Text, paths: Sequence[str]) -> bytes: ...
def set_field(record: Text, path: str, value: str | None) -> bytes: ...
