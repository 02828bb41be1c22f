"""Embeddings of texts as OpenAI's API and Text Embeddings Inference have them.

https://platform.openai.com/docs/api-reference/embeddings/create
https://huggingface.github.io/text-embeddings-inference/
"""

import base64
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.model import Model
from runtime.preprocessing.preparation import RawRows
from runtime.raw_inputs import TextStage
from runtime.records.predictions import vectors, writable
from runtime.records.tensors import brief, kind_of
from runtime.signature import TensorSpec
from runtime.tensors import Array
from server.batching.pending_request import InferenceResult
from server.errors import NotFound, TooLarge, UnsupportedMedia
from server.protocols.inference import ParsedRequest
from server.protocols.response import Response, json_response
from server.protocols.strict_json import parse_object

# Of OpenAI's API; what a request may have here can be less.
_MAX_INPUTS = 2048
_OPENAI_KEYS = ("input", "model", "encoding_format", "dimensions", "user")
_TEI_KEYS = ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions")
_FORMATS = ("float", "base64")


def read_openai(
    body: bytes, json_length: int | None, model: Model, *, max_rows: int
) -> ParsedRequest[Response]:
    """Parse a request of OpenAI's API; any model name is taken, since a server has one model.

    Args:
      body: the complete body, decompressed.
      json_length: see `BodyInfo`; binary tensors are refused.
      model: one that embeds texts.
      max_rows: limit of rows in a request.

    Raises:
      NotFound: the model does not embed texts.
      MalformedRequest: the body is not what the API takes.
      SignatureMismatch: there are ids of tokens in place of texts, or other dimensions are asked for.
      TooLarge: more texts than max_rows.
    """
    value = _object(body, json_length, _OPENAI_KEYS)
    name, spec = _embedding(model)
    texts = _texts(value, "input", min(max_rows, _MAX_INPUTS))
    encoding = value.get("encoding_format", "float")
    if encoding not in _FORMATS:
        raise MalformedRequest(
            f"encoding_format: expected {' or '.join(_FORMATS)}, got {brief(encoding)}"
        )
    _expect_dimensions(value, spec)
    write = functools.partial(_write_openai, model, spec, as_base64=encoding == "base64")
    return ParsedRequest(_raw(name, texts, "input"), write)


def read_tei(
    body: bytes, json_length: int | None, model: Model, *, max_rows: int
) -> ParsedRequest[Response]:
    """Parse a request of Text Embeddings Inference's `/embed`; as for `read_openai`."""
    value = _object(body, json_length, _TEI_KEYS)
    name, spec = _embedding(model)
    texts = _texts(value, "inputs", max_rows)
    stage = next(s for s in model.manifest.preprocess if isinstance(s, TextStage))
    if value.get("truncate") and not stage.truncate:
        raise SignatureMismatch(
            f"truncate: expected false, since texts of more than {stage.max_tokens} tokens are refused "
            "here, got true"
        )
    for key in ("truncation_direction", "prompt_name"):
        if value.get(key) is not None:
            raise MalformedRequest(f"{key}: expected none, got {brief(value[key])}")
    _expect_dimensions(value, spec)
    normalize = value.get("normalize", True)
    if type(normalize) is not bool:
        raise MalformedRequest(f"normalize: expected true or false, got {brief(normalize)}")
    write = functools.partial(_write_tei, spec, normalized=normalize)
    return ParsedRequest(_raw(name, texts, "inputs"), write)


def _object(body: bytes, json_length: int | None, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if json_length is not None:
        raise UnsupportedMedia("content-type: expected application/json, got binary tensors")
    value = parse_object(body)
    unknown = next((key for key in value if key not in keys), None)
    if unknown is not None:
        raise MalformedRequest(f"body: expected {', '.join(keys)}, got {unknown[:100]!r}")
    return value


def embeds_texts(model: Model) -> bool:
    """Whether a model is one that these protocols can ask: of one text, to an embedding."""
    names = model.preparer.expected_names if model.preparer else ()
    kinds = {model.preparer.kinds.get(name) for name in names} if model.preparer else set()
    return (
        model.manifest.output_format.kind == "embedding" and len(names) == 1 and kinds == {"text"}
    )


def example_bodies(text: str) -> dict[str, Any]:
    """Return a valid body for each of these protocols."""
    return {"openai": {"input": text}, "tei": {"inputs": text}}


def _embedding(model: Model) -> tuple[str, TensorSpec]:
    """Return the name of the text, and the output that is the embedding."""
    if model.preparer is None or not embeds_texts(model):
        raise NotFound("embeddings: expected a model that embeds one text, got another one")
    output = model.manifest.output_format.output
    spec = next(spec for spec in model.signature.outputs if spec.name == output)
    return model.preparer.expected_names[0], spec


def _texts(value: Mapping[str, Any], key: str, max_rows: int) -> list[str]:
    given = value.get(key)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        got = "none" if given == [] or key not in value else kind_of(given)
        raise MalformedRequest(f"{key}: expected a text or an array of texts, got {got}")
    if len(texts) > max_rows:
        raise TooLarge(f"{key}: expected at most {max_rows} texts, got {len(texts)}")
    for i, text in enumerate(texts):
        if isinstance(text, str):
            continue
        if type(text) in (int, list):
            raise SignatureMismatch(
                f"{key}: expected texts, got integers; these are another tokenizer's ids; send text"
            )
        raise SignatureMismatch(f"{key}[{i}]: expected a text, got {kind_of(text)}")
    return texts


def _expect_dimensions(value: Mapping[str, Any], spec: TensorSpec) -> None:
    dimensions = value.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions != spec.shape[1]):
        raise SignatureMismatch(
            f"dimensions: expected {spec.shape[1]}, the size of the model's embeddings, got "
            f"{brief(dimensions)}"
        )


def _raw(name: str, texts: list[str], key: str) -> RawRows:
    return RawRows({name: texts}, len(texts), lambda _, row: f"{key}[{row}]")


def _write_openai(
    model: Model, spec: TensorSpec, result: InferenceResult, *, as_base64: bool
) -> Response:
    form = model.manifest.output_format
    rows = vectors(result.outputs[spec.name], normalized=form.normalized)
    prepared = result.metadata.prepared
    tokens = prepared.tokens if prepared else 0
    written = _base64(rows) if as_base64 else writable(rows, spec, result.nonfinite)
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(written)]
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": model.manifest.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _base64(rows: Array) -> list[str]:
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]


def _write_tei(spec: TensorSpec, result: InferenceResult, *, normalized: bool) -> Response:
    rows = vectors(result.outputs[spec.name], normalized=normalized)
    return json_response(writable(np.ascontiguousarray(rows), spec, result.nonfinite))
