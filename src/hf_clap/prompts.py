"""The words for a class: templates, ensembles of them, descriptions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

DEFAULT_TEMPLATE = "this is a sound of {}"  # of the paper (section 4)

SWEEP = (
    "{}",
    DEFAULT_TEMPLATE,
    "this is the sound of {}",
    "the sound of {}",
    "a recording of {}",
    "{} can be heard",
    "i can hear {}",
)
"""Templates that `hf-clap eval --prompt-sweep` compares: the label alone, the paper's, and ones that users write."""


@dataclass(frozen=True)
class Prompts:
    """
    How classes are put into words. The class's vector is the normalised mean of the embeddings of its texts.

    Args:
        templates: sentences with `{}` for the class; `"{}"` is the name alone, and several are an ensemble.
        descriptions: of classes in other words, which then stand in the templates in place of the name.

    Raises:
        ValueError: if there is no template, or one without `{}`.

    Example:

    ```python
    >>> from hf_clap.prompts import Prompts

    >>> Prompts(("{}", "the sound of {}"), {"dog": ("a dog barking", "a dog whining")}).texts_of("dog")
    ['a dog barking', 'a dog whining', 'the sound of a dog barking', 'the sound of a dog whining']
    >>> Prompts(("{}", "the sound of {}")).texts_of("rain")
    ['rain', 'the sound of rain']

    ```
    """

    templates: tuple[str, ...]
    descriptions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_templates(self.templates)

    def texts_of(self, name: str) -> list[str]:
        """All that is said for a class."""
        words = self.descriptions.get(name, (name,))
        return [template.replace("{}", word) for template in self.templates for word in words]

    def as_json(self) -> dict[str, Any]:
        """For a result: what makes the same prompts again."""
        described = {name: list(words) for name, words in self.descriptions.items()}
        return {"templates": list(self.templates), **({"descriptions": described} if described else {})}


def check_templates(templates: str | Iterable[str]) -> list[str]:
    """One template or several as a list, or a ValueError that says what is wrong with them."""
    if isinstance(templates, str) or not isinstance(templates, Iterable):
        templates = [templates]
    templates = list(templates)
    if not templates:
        raise ValueError(f"There is no template; pass at least one, such as {DEFAULT_TEMPLATE!r}.")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                f"Template {template!r} does not say where the label goes; write {{}} in its place, once, as in "
                f"{DEFAULT_TEMPLATE!r}."
            )
    check_unicode("Template", templates)
    return templates


def check_unicode(what: str, texts: Sequence[str]) -> None:
    """Raises a ValueError for what a tokenizer cannot read, such as bytes of another encoding on a command line."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} {text!r} is not valid Unicode; pass it in UTF-8.") from error


def read_descriptions(file: str | PathLike[str], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """
    Descriptions of classes from JSON, `{"dog": ["a dog barking", "a dog whining"], "rain": "rain on a roof"}`.

    Args:
        file: in UTF-8.
        classes: that they may describe; a class without a description is called by its name.

    Returns:
        dict: class to descriptions.

    Raises:
        ValueError: if the file is not such JSON, describes a class twice or what is not a class, or its texts are not
            Unicode.
    """
    try:
        described = json.loads(Path(file).read_text(encoding="utf-8-sig"), object_pairs_hook=_with_each_name_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON in UTF-8 ({error}); check it.") from error
    if not isinstance(described, dict):
        raise ValueError(f'{file} is not a JSON object; write {{"class": ["description", …], …}}.')
    descriptions = {}
    for name, words in described.items():
        words = [words] if isinstance(words, str) else words
        if name not in classes:
            raise ValueError(f"{file} describes {name!r}, which is not a class; the classes are {', '.join(classes)}.")
        if not (isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)):
            raise ValueError(f"{file} does not describe {name!r} by texts; write one, or a list of them.")
        check_unicode(f"{file}: Description", words)
        descriptions[name] = tuple(words)
    return descriptions


def _with_each_name_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python would keep the last of equal names."""
    described: dict[str, Any] = {}
    for name, words in pairs:
        if name in described:
            raise ValueError(f"{name!r} is there twice")
        described[name] = words
    return described
