"""Where a torch model comes from: a torchvision name, ``package.module:factory``, or a ``.pt2`` program.

A factory is a callable without arguments. It returns an ``nn.Module`` that takes one image batch, or a
:class:`ModelSpec` when there is more to say (several inputs, other shapes, class names)::

    def two_inputs() -> ModelSpec:
        return ModelSpec(
            module=MyModel(),
            inputs=lambda batch: {"image": torch.randn(batch, 3, 64, 64), "ids": torch.ones(batch, 8).long()},
        )

torch is imported by the functions here, never by importing the module.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtbatch.core.hints import call
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.errors import ModelError, TrtbatchError, UsageError
from trtbatch.exporter.program import load_program
from trtbatch.exporter.torchmodel import TorchModel, line_of
from trtbatch.exporter.weights import first_line, fitted, load_into, pretrained, seeded, state_dict
from trtbatch.util import optional

__all__ = ["ModelSpec", "load_model"]

_FEW = 8
"""A module's own callables are all shown up to this number."""

Inputs = Any
"""A tensor, a sequence of tensors or a mapping of names to tensors, each with its batch axis."""


@dataclass(frozen=True)
class ModelSpec:
    """What a factory may return next to a bare ``nn.Module``.

    Args:
        module: the ``nn.Module``; mapping inputs reach it as keyword arguments, others by position.
        inputs: example inputs: a function of the batch size (best: the batch axes are then found by calling
            it twice, and may be anywhere), or tensors of some batch size with the batch axis first.
            A tensor, a sequence, or a mapping of names to tensors. None: one image batch, ``(N, 3, 224, 224)``.
        preprocessing: how an image becomes a sample, for ``trtbatch infer`` on image files.
        classes: names of the classes, in the order of the scores.
    """

    module: Any
    inputs: Callable[[int], Inputs] | Inputs | None = None
    preprocessing: Preprocessing | None = None
    classes: Sequence[str] | None = None


def load_model(
    model: str,
    weights: str = "auto",
    seed: int = 0,
    input_shape: tuple[int, ...] | None = None,
    trust_code: bool = False,
) -> TorchModel:
    """Return the model that the command line names.

    Args:
        model: torchvision name, ``package.module:factory``, or path of a ``.pt2`` file.
        weights: ``auto``, ``pretrained``, ``random``, or the path of a state dict.
        seed: of random weights and random example inputs.
        input_shape: of one sample, without the batch axis; None takes the model's own.
        trust_code: load a ``.pt2`` file as torch does, with the code that it may hold.

    Raises:
        UsageError: an unknown name (the three closest are given), or options that don't fit the model.
        ModelError: the model, its weights or its inputs can't be made, or a ``.pt2`` file would run code.
    """
    if trust_code and not model.endswith(".pt2"):
        raise UsageError(f"`trust_code` is for .pt2 files, and {model} isn't one", "leave out `trust_code`")
    torch = optional.require("torch", "export a model")
    torch.manual_seed(seed)
    if model.endswith(".pt2"):
        loaded = _from_program(model, weights, input_shape, trust_code)
    elif ":" in model:
        loaded = _from_factory(model, weights, seed, input_shape)
    else:
        loaded = _from_torchvision(model, weights, seed, input_shape)
    loaded.module.eval()
    return loaded


def _from_torchvision(model: str, weights: str, seed: int, input_shape: tuple[int, ...] | None) -> TorchModel:
    optional.require("torchvision", "make a torchvision model")
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        _refuse_file(model)
        close = difflib.get_close_matches(model, known, n=3, cutoff=0.0)
        raise UsageError(
            f"torchvision has no classification model {model!r}; closest: {', '.join(close)}",
            "name one of these, package.module:factory, or a .pt2 file",
        )
    default = models.get_model_weights(model).DEFAULT
    preprocessing = _preprocessing(default.transforms())
    if input_shape is not None:
        preprocessing = _rescaled(preprocessing, input_shape)
    shape = (3, *preprocessing.crop)
    classes: tuple[str, ...] | None = tuple(default.meta["categories"])
    if weights in ("auto", "pretrained"):
        module, label = pretrained(model, default, weights, seed)
    else:
        module, label = seeded(model, seed), f"random (seed {seed})"
        if weights != "random":
            module, resized = fitted(model, module, weights)
            classes = None if resized else classes
            label = f"file {Path(weights).name}"
    return TorchModel(model, module, _images(shape, seed), False, label, preprocessing, classes)


def _refuse_file(model: str) -> None:
    """Raise for a path: no model's name resembles it.

    Raises:
        UsageError: saying what of a file could be exported.
    """
    path = Path(model)
    if not path.exists() and os.sep not in model:
        return
    if path.suffix == ".onnx" and path.is_file():
        raise UsageError(f"{model} is an ONNX file: it is exported already", f"run: {call('build', model)}")
    what = "is a folder" if path.is_dir() else "is a file" if path.exists() else "looks like a path"
    raise UsageError(
        f"{model} {what}, and no model", "name a .pt2 file, package.module:factory, or a torchvision name (resnet18)"
    )


def _preprocessing(transforms: Any) -> Preprocessing:
    """Return torchvision's ``ImageClassification`` preset as our record."""
    crop = list(transforms.crop_size) * 2
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=(crop[0], crop[1]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _rescaled(preprocessing: Preprocessing, shape: tuple[int, ...]) -> Preprocessing:
    """Return the same recipe for another input size; the resize keeps its ratio to the crop."""
    if len(shape) != 3 or shape[0] != 3:
        raise UsageError(f"torchvision models take 3 channels, not {shape}", "write `input_shape=(3, HEIGHT, WIDTH)`")
    ratio = preprocessing.resize / min(preprocessing.crop)
    crop = (shape[1], shape[2])
    return replace(preprocessing, crop=crop, resize=max(1, round(max(crop) * ratio)))


def _images(shape: tuple[int, ...], seed: int) -> Callable[[int], dict[str, Any]]:
    torch = optional.require("torch", "export a model")

    def example(batch: int) -> dict[str, Any]:
        return {"input": torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))}

    return example


def _from_factory(model: str, weights: str, seed: int, input_shape: tuple[int, ...] | None) -> TorchModel:
    torch = optional.require("torch", "export a model")
    module_name, _, attribute = model.partition(":")
    if weights == "pretrained":
        raise UsageError(
            "`weights='pretrained'` is for torchvision names", "let the factory load its weights, or pass a file"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UsageError(f"{model!r} names no factory", "write package.module:factory")
    made = _call_factory(module_name, attribute)
    spec = made if isinstance(made, ModelSpec) else ModelSpec(made)
    if not isinstance(spec.module, torch.nn.Module):
        raise ModelError(
            f"{model} returned {type(made).__name__}, not an nn.Module", "return an nn.Module or a trtbatch.ModelSpec"
        )
    label = f"as {model} makes them (seed {seed})"
    if weights not in ("auto", "random"):
        load_into(spec.module, state_dict(weights), weights, model)
        label = f"file {Path(weights).name}"
    if spec.inputs is None:
        example, by_keyword = _images(input_shape or (3, 224, 224), seed), False
    elif input_shape is not None:
        raise UsageError(f"{model} brings its own example inputs", "leave out `input_shape`")
    else:
        example, by_keyword = _spec_example(spec.inputs, seed)
    classes = None if spec.classes is None else tuple(spec.classes)
    fix = TorchModel.fix if spec.inputs is None else "give example inputs and a model that take any batch"
    return TorchModel(attribute, spec.module, example, by_keyword, label, spec.preprocessing, classes, fix)


def _call_factory(module_name: str, attribute: str) -> Any:
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"no module {error.name!r} on sys.path ({sys.path[0] or os.getcwd()}, …)", "write package.module:factory"
        ) from error
    except Exception as error:
        raise ModelError(f"importing {module_name} failed: {first_line(error)}", "mend the module") from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        raise _no_factory(found, module_name, attribute)
    try:
        return factory()
    except TrtbatchError:
        raise
    except Exception as error:
        raise ModelError(f"{module_name}:{attribute}() failed: {first_line(error)}", "mend the factory") from error
    except SystemExit as error:
        raise ModelError(f"{module_name}:{attribute}() ended the program ({error.code})", "mend the factory") from error


def _no_factory(module: Any, name: str, attribute: str) -> UsageError:
    """Which callables a module has instead: its own before those that it imports, which are seldom meant."""
    public = {each: value for each, value in vars(module).items() if callable(value) and not each.startswith("_")}
    own = [each for each, value in public.items() if getattr(value, "__module__", None) == module.__name__]
    if 0 < len(own) <= _FEW:
        proposed, words = own, "it defines"
    else:
        proposed, words = difflib.get_close_matches(attribute, own or public, n=3, cutoff=0.0), "closest"
    foreign = [each for each in public if each not in own]
    proposed += [each for each in difflib.get_close_matches(attribute, foreign, n=1) if each not in proposed]
    problem = f"{name} has no callable {attribute!r}"
    if not proposed:
        return UsageError(f"{problem}, and no other", "write a function there that returns the model")
    ordered = difflib.get_close_matches(attribute, proposed, n=len(proposed), cutoff=0.0)
    return UsageError(f"{problem}; {words}: {', '.join(proposed)}", f"name one of these, such as {name}:{ordered[0]}")


def _spec_example(inputs: Any, seed: int) -> tuple[Callable[[int], dict[str, Any]], bool]:
    """Return a function of the batch size from a spec's inputs, and whether they go in by keyword."""
    torch = optional.require("torch", "export a model")
    tiles = not callable(inputs) or isinstance(inputs, torch.Tensor)

    def called(batch: int) -> Inputs:
        torch.manual_seed(seed)
        try:
            return inputs(batch)
        except Exception as error:
            raise ModelError(
                f"the spec's inputs({batch}) failed: {first_line(error)}{line_of(error)}", "mend the function"
            ) from error

    def example(batch: int) -> dict[str, Any]:
        if tiles:
            return {name: _tiled(tensor, batch) for name, tensor in _named(inputs).items()}
        return _named(called(batch))

    return example, isinstance(inputs if tiles else called(2), Mapping)


def _named(inputs: Inputs) -> dict[str, Any]:
    torch = optional.require("torch", "export a model")
    if isinstance(inputs, torch.Tensor):
        named = {"input": inputs}
    elif isinstance(inputs, Mapping):
        named = {str(name): tensor for name, tensor in inputs.items()}
    elif isinstance(inputs, (tuple, list)):
        named = {"input" if len(inputs) == 1 else f"input{i}": tensor for i, tensor in enumerate(inputs)}
    else:
        named = {}
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"example input {name!r} is {type(tensor).__name__}, not a tensor", "give tensors")
    if not named:
        raise ModelError(
            f"the example inputs are {type(inputs).__name__}",
            "give a tensor, a sequence of tensors or a mapping of names to tensors",
        )
    return named


def _tiled(tensor: Any, batch: int) -> Any:
    """`tensor` at another batch size: its rows in turn, each later round shifted by one element.

    The shift keeps the values of the example (ids stay ids) and makes the rows differ, without which a
    proof over rows would prove nothing.
    """
    torch = optional.require("torch", "export a model")
    if tensor.dim() == 0 or tensor.shape[0] == 0:
        return tensor
    rows = [tensor[i % len(tensor)].flatten().roll(i // len(tensor)) for i in range(batch)]
    return torch.stack(rows).reshape(batch, *tensor.shape[1:])


def _from_program(model: str, weights: str, input_shape: tuple[int, ...] | None, trust_code: bool) -> TorchModel:
    torch = optional.require("torch", "load a .pt2 program")
    if weights not in ("auto",) or input_shape is not None:
        raise UsageError(f"{model} holds its own weights and shapes", "leave out `weights` and `input_shape`")
    if not Path(model).is_file():
        raise UsageError(f"{model}: no such file", "save one with torch.export.save(program, FILE)")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            program = load_program(Path(model), trust_code)
        module = program.module()
    except (TrtbatchError, OSError):
        raise
    except Exception as error:
        raise ModelError(
            f"{model} is not an exported program of torch {torch.__version__}: {first_line(error)}",
            "save it again with torch.export.save, with this torch",
        ) from error
    args, kwargs = program.example_inputs or ((), {})
    if (args and kwargs) or not (args or kwargs):
        raise ModelError(
            f"{model} has no example inputs, or mixes positional and keyword ones", "export it with either"
        )
    example, by_keyword = _spec_example(kwargs or args, 0)
    label = f"of {Path(model).name}"
    fix = (
        "export the program with dynamic_shapes ({0: torch.export.Dim('batch')} for each input), or pass "
        "`dynamic=False, batch=N` for the size that it has"
    )
    return TorchModel(Path(model).stem, _evaluated(module), example, by_keyword, label, fix=fix)


def _evaluated(program: Any) -> Any:
    """Return a module around an exported program, whose own ``train`` and ``eval`` raise."""
    torch = optional.require("torch", "load a .pt2 program")

    class Program(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.program = program
            self.training = False

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.program(*args, **kwargs)

        def train(self, mode: bool = True) -> Any:
            return self

    return Program()
