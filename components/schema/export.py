"""What is asked of an export: a released model in a form that other programs read."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from components.schema.config import BadInput, Config

Form = Literal["safetensors", "gguf", "int8", "int4", "onnx", "card"]
MEASURED: tuple[Form, ...] = ("int8", "int4")  # forms that change what the model answers, and that our own loader reads: their cost in score is measured


class ExportConfig(Config):
    """One form of one model."""

    to: Form
    """safetensors: a folder for any hub. gguf: one file for llama.cpp. int8, int4: weights of fewer bits (torchao). onnx: a graph for onnxruntime. card: the model card alone."""
    numbers: Literal["f32", "f16", "q8_0"] = "f16"
    """How a GGUF file holds the matrices: 32 bits, 16 bits, or 8 bits in blocks of 32."""
    tokenizer: Literal["inside", "apart"] = "inside"
    """GGUF: inside = the file tokenizes exactly as the model was trained, or is refused. apart = the file reads token ids, and tokenizer.json lies beside it."""
    group_size: Literal[32, 64, 128] = 32
    """int4: weights that share a scale. Fewer cost less score and more bytes."""
    onnx_int8: bool = False
    """onnx: also a graph with 8-bit weights, by onnxruntime."""

    @model_validator(mode="after")
    def _options_belong_to_the_form(self) -> ExportConfig:
        owners = {"numbers": "gguf", "tokenizer": "gguf", "group_size": "int4", "onnx_int8": "onnx"}
        for name, form in owners.items():
            if self.to != form and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)!r} belongs to {form} and the export is to {self.to}: it would be ignored. Leave it out, or export to {form}")
        return self

    @classmethod
    def asked(cls, **options: Any) -> Self:
        """From options as a person gave them. Errors: BadInput, with a part for each that cannot be."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            told = [_explained(problem) for problem in error.errors()]
            raise BadInput(f"export: {'; '.join(told)}; nothing was started") from None

    def defining(self) -> dict[str, object]:
        """What the result depends on: the form and its own options."""
        own = {"gguf": ("numbers", "tokenizer"), "int4": ("group_size",), "onnx": ("onnx_int8",)}
        return {"to": self.to, **{name: getattr(self, name) for name in own.get(self.to, ())}}


def _explained(problem: Any) -> str:
    """One pydantic problem: which option, its value, what it may be."""
    said = problem["msg"].removeprefix("Value error, ")
    return f"{problem['loc'][0]}={problem['input']!r}: {said[0].lower()}{said[1:]}" if problem["loc"] else said
