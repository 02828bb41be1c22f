"""The libraries that stages need, which extras bring."""

from collections.abc import Callable, Iterable, Mapping

from runtime.preprocessing import decoding, tokenizer
from runtime.raw_inputs import Stage

_LIBRARIES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "text": ("tokenizers", tokenizer.library_version),
    "image": ("pillow", decoding.library_version),
}


def library_versions(stages: Iterable[Stage]) -> dict[str, str]:
    """Return the versions of the libraries that stages need, by the packages' names.

    Raises:
      MissingLibrary: one is not installed, or is too old.
    """
    needed = dict(_LIBRARIES[stage.kind] for stage in stages)
    return {name: version() for name, version in needed.items()}
