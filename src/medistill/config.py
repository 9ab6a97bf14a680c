"""Settings: frozen, checked, with ranges; files in YAML, single values with ``--set a.b=c``.

The resolved configuration as canonical JSON is a run's identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
)

from medistill.errors import ConfigError, nearest
from medistill.settings import DataConfig as DataConfig
from medistill.settings import Settings as Settings

Model = TypeVar("Model", bound=BaseModel)

Net = Literal["convnet", "convnet-bn", "mlp", "resnet18", "densenet121", "vit"]
"""Networks that can be trained, see ``medistill.nets.zoo``."""


class Recipe(Settings):
    """The one training recipe; every arm of every comparison uses the same.

    AdamW under a one-cycle learning rate, with random affine and intensity changes. The
    number of steps follows from the number of training images alone; there is no early
    stopping, so no arm is favoured by its validation set.
    Chosen on validation data, see docs/explanation/evaluation-recipe.md.
    """

    epochs: float = Field(5, gt=0, le=10_000, description="passes over the images, within the bounds below")
    min_steps: int = Field(600, ge=1, le=1_000_000, description="gradient steps for at most one batch of images")
    steps_per_doubling: int = Field(
        80, ge=0, le=1_000_000, description="more of them each time the number of images doubles"
    )
    max_steps: int = Field(3000, ge=1, le=1_000_000, description="gradient steps that no set exceeds")
    batch_size: int = Field(32, ge=1, le=65536, description="images per step, at most all there are")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="peak of the one-cycle schedule")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of the target spread over all classes; grades spread to near ones"
    )
    weight_decay: float = Field(0.5, ge=0, le=10, description="decoupled weight decay")
    width: int = Field(
        64, ge=1, le=4096, description="filters per convolution of the ConvNet; of volumes half as many"
    )
    stem: int | None = Field(
        None,
        ge=1,
        le=64,
        description="pixels a side of the patches that the ConvNet sees; if not given 1, from 48 pixels on so many "
        "that about 32 patches are left",
    )
    augment: bool = Field(True, description="random affine and intensity changes in training")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what the layers compute in while a network trains; bfloat16 takes less time where the "
        "processor has it, and is another recipe",
    )

    LATER: ClassVar[Mapping[str, Any]] = {"precision": "float32", "stem": None}


class EvaluateConfig(Settings):
    """How many networks are trained for each arm, and on what recipe."""

    recipe: Recipe = Field(default_factory=Recipe)
    repeats: int = Field(
        3, ge=1, le=100, description="networks per package and full arm, at most of the balanced one"
    )
    random_draws: int | None = Field(
        None,
        ge=2,
        le=100,
        description="random subsets, one network each; None: 3, and up to 15 of fewer than 20 images",
    )
    bootstrap: int = Field(2000, ge=100, le=100_000, description="bootstrap samples of an interval")
    seed: int = Field(0, description="seed of networks, draws and bootstrap")
    architectures: tuple[Net, ...] = Field(
        ("convnet",), min_length=1, description="kinds of networks; the first gives the verdict, others show transfer"
    )
    robust_scores: bool = Field(
        False, description="also DD-Ranking's scores, for which a few more networks are trained on few images"
    )
    curve_points: int = Field(8, ge=2, le=100, description="points of a learning curve, on validation data")

    @field_validator("architectures", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        return tuple(dict.fromkeys(n.strip() if isinstance(n, str) else n for n in names))

    def draws(self, images: int) -> int:
        """Random subsets of that many images: fewer images differ more and cost less, so more are drawn.

        >>> [EvaluateConfig().draws(n) for n in (2, 10, 15, 20, 1000)]
        [15, 12, 5, 3, 3]
        """
        return self.random_draws or max(3, min(15, 1200 // images**2))


CHANGES_NOTHING = frozenset({"memory_limit_mb"})
"""Of what distilling is told that which changes rounding alone."""


class LabelConfig(Settings):
    """What labels the distilled images get: their class, or what networks trained on the real images say."""

    teachers: int = Field(
        0, ge=0, le=100, description="networks whose mean probabilities become labels; 0: the class"
    )
    temperature: float = Field(1.0, gt=0, le=100, description="above 1 softens the probabilities")
    balance: bool = Field(True, description="teachers see every class equally often, so they prefer none")
    calibrate: bool = Field(
        True, description="shift labels by class until a network trained on them prefers no class of real images"
    )
    recipe: Recipe = Field(default_factory=Recipe, description="how teachers are trained")


class OptimiserConfig(Settings):
    """What moves the images down the gradient; what is left out is the method's own."""

    name: Literal["sgd", "adam"] | None = Field(None, description="sgd with momentum, or adam")
    learning_rate: float | None = Field(None, gt=0, le=1e8, description="of the images, in normalised units")
    momentum: float | None = Field(None, ge=0, lt=1, description="of the images")
    schedule: Literal["constant", "cosine"] | None = Field(
        None, description="of learning rates over the steps: constant, or down to 0 along a cosine"
    )


class PrivacyConfig(Settings):
    """A guarantee of differential privacy, and how its budget is spent."""

    epsilon: float = Field(gt=0, description="ε: the smaller, the less a package can tell of anybody")
    delta: float = Field(
        1e-5, ge=1e-12, lt=1, description="δ: chance at which ε may fail, far below one in all images"
    )
    unit: Literal["image", "patient"] | None = Field(
        None, description="whose presence is hidden; None: a patient's where patients are known, else an image's"
    )
    clip: float = Field(
        0.85,
        ge=0.01,
        le=100,
        description="longest embedding that counts in full, as a multiple of that of generated images",
    )
    count_share: float = Field(
        0.2, ge=0.01, le=1, description="part of the sensitivity that pays for the number of images of each class"
    )
    centre_share: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="part of the budget that pays for the mean embedding of all, from which classes are measured",
    )


class DistilConfig(Settings):
    """Everything that determines a distilled set besides the data themselves."""

    method: dict[str, Any] = Field(description="the method's name and hyperparameters")
    optimiser: OptimiserConfig = Field(default_factory=OptimiserConfig)
    ipc: int | None = Field(None, description="images per class, grade or finding")
    ratio: float | None = Field(None, description="distilled images per training image")
    factor: int = Field(
        1,
        ge=1,
        le=8,
        description="images are stored at 1/factor of the side, factor² pictures or factor³ volumes in one's bytes",
    )
    labels: LabelConfig = Field(default_factory=LabelConfig)
    memory_limit_mb: float | None = Field(
        None,
        gt=0,
        description="to stay under while distilling; fewer classes, images and teachers go at once",
    )
    seed: int = Field(0, description="seed of everything random")
    data: DataConfig = Field(default_factory=DataConfig)
    privacy: PrivacyConfig | None = Field(None, description="a guarantee of differential privacy; None: none")

    LATER: ClassVar[Mapping[str, Any]] = {"privacy": None}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ConfigError: missing, unreadable, or not a mapping.
    """
    import yaml

    class Once(yaml.SafeLoader):
        """The last of two equal keys would win in silence."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            twice = [name for name in names if isinstance(name, str) and names.count(name) > 1]
            if twice:
                raise yaml.YAMLError(f"'{twice[0]}' stands twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=Once)
    except yaml.MarkedYAMLError as problem:
        where = problem.problem_mark or problem.context_mark
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"is no YAML ({problem.problem or problem.context}{line})", where=path) from problem
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise ConfigError(f"cannot be read ({str(problem).splitlines()[0]})", where=path) from problem
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"holds a {type(value).__name__}", where=path, allowed="keys and values")
    return value or {}


def assign(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` assignments to nested dictionaries; the values are read as YAML.

    Raises:
        ConfigError: an assignment without "=" or below something that is not a mapping.
    """
    import yaml

    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(
                f"'{assignment}'", where="--set", allowed="name=value, for instance method.iterations=500"
            )
        place = values
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{part}' has no settings below it", where=f"--set {name}")
        try:
            place[parts[-1]] = _number(yaml.safe_load(text))
        except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date that there is not
            raise ConfigError(f"'{text}' is no value", where=f"--set {name}") from problem
    return values


def mapping(value: Any, name: str) -> dict[str, Any]:
    """The settings of a section; nothing means none.

    Raises:
        ConfigError: something else than names with values.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r}", where=name, allowed=f"settings below it, for instance {name}.NAME=VALUE")
    return dict(value)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


KINDS = {
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "settings below it, each as NAME: VALUE"),
}
"""Types of values in the words of YAML rather than of Python."""


RENAMED = {
    "least_steps": "min_steps", "most_steps": "max_steps", "batch": "batch_size", "networks": "repeats",
    "nets": "architectures",
}  # fmt: skip
"""Settings by the names that they had until version 0.1.0."""


def build(model: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """Check values against a model; the first thing wrong becomes one line with the allowed range.

    Raises:
        ConfigError: unknown key (with the nearest spelling), wrong type or out of range.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as problem:
        first = problem.errors()[0]
        path = [str(part) for part in first["loc"]]
        name = ".".join(([where] if where else []) + path)
        if first["type"] == "extra_forbidden":
            field_names = _fields(model, path[:-1])
            now = RENAMED.get(path[-1], "")
            hint = f"it is called '{now}' now" if now in field_names else nearest(path[-1], field_names)
            raise ConfigError(f"unknown setting '{name}'", remedy=hint) from problem
        if first["type"] == "value_error":  # a rule of ours about several settings, told in its own words
            raise ConfigError(str(first["ctx"]["error"]), where=name or model.__name__) from problem
        if first["type"] == "missing":
            raise ConfigError("is missing", where=name) from problem
        others = {error["loc"][:1] for error in problem.errors()} - {first["loc"][:1]}
        remedy = f"wrong too: {', '.join(sorted(str(loc[0]) for loc in others if loc))}" if others else None
        if first["type"] == "string_type":
            remedy = "values are read as YAML; text that looks like something else there needs quotes of its own"
        raise ConfigError(
            f"{first.get('input')!r}",
            where=name or model.__name__,
            allowed=KINDS.get(first["type"], first["msg"].lower()),
            remedy=remedy,
        ) from problem


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdecimal():
            continue  # the place in a list
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        models = [t for t in (inner, *_inside(inner)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            break
        model = models[0]
    return list(model.model_fields)


def _inside(annotation: Any) -> list[Any]:
    """Types that a tuple or an alternative is made of."""
    return [inner for arg in get_args(annotation) for inner in (arg, *_inside(arg))]


def differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations differ, with both values."""
    names: list[str] = []
    for key in sorted({*first, *second}):
        a, b = first.get(key), second.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differing(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key} ({a!r} there, {b!r} here)")
    return names
