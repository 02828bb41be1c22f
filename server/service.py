"""What the server does, free of any protocol: a model that comes up, then answers.

Requests are answered on the threads that carry them; `Model.predict` may be called from
any number at once. Whoever loads the model calls `open` once, from one thread.
"""

from collections.abc import Mapping

from runtime.model import Model
from runtime.tensors import Array
from server.errors import NotReady


class Service:
    """The model behind every route. Not ready until `open` is called."""

    def __init__(self) -> None:
        self._model: Model | None = None

    @property
    def ready(self) -> bool:
        """Say whether requests are answered: loaded, and the goldens matched."""
        return self._model is not None

    @property
    def model(self) -> Model:
        """Give the model.

        Raises:
          NotReady: it is still being loaded.
        """
        if self._model is None:
            raise NotReady("the model is still being loaded; try again shortly")
        return self._model

    def open(self, model: Model) -> None:
        """Begin to answer with this model."""
        self._model = model

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer rows; see `Model.predict`."""
        return self.model.predict(inputs)
