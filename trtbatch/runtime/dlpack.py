"""Tensors of other libraries, shared rather than copied: DLPack, read and written with ctypes.

numpy reads what lies in the host's memory by itself. What lies on a GPU it refuses, so the address is read
from the capsule here, and an output that stays on the GPU is handed out as a capsule of our own.

The structures are those of DLPack 0.x (``dlpack.h``), which every producer still gives where no version is asked
for, under the name ``dltensor``.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import refuse_integers
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError
from trtbatch.util.text import shortened

__all__ = ["CPU", "CUDA", "DeviceArray", "Shared", "device_of", "host_array", "shared"]

CPU = 1
CUDA = 2
_HOST = (1, 3, 11)
"""DLPack's kinds of memory that the host reads: kDLCPU, kDLCUDAHost (page-locked) and kDLROCMHost."""

_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}
"""DLDataTypeCode."""


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_NAME = b"dltensor"  # held here: a capsule keeps the address of its name, not a copy
_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def device_of(value: Any) -> tuple[int, int]:
    """Kind and number of the device that a tensor lies on; an array or list is on the CPU."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return CPU, 0
    kind, number = value.__dlpack_device__()
    return (CPU, 0) if int(kind) in _HOST else (int(kind), int(number))


def host_array(value: Any, name: str) -> NDArray[Any]:
    """Return a tensor in the host's memory as an array, sharing its memory; other things as numpy makes arrays of them.

    Raises:
        InputError: the tensor's library won't share it, numpy has no such type, or rows of a list differ in shape.
    """
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return _as_array(value, name)
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} can't be shared: {shortened(str(error))}", "give tensor.detach(), of a type that numpy has"
        ) from error


def _as_array(value: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} is no array: {shortened(str(error))}", "give rows of one shape") from error


@dataclass(frozen=True)
class Shared:
    """Another library's tensor by its address, valid while this object lives: it holds the capsule.

    Args:
        dtype: numpy's name for it, or ``bfloat16``.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    capsule: Any = field(repr=False)


def shared(value: Any, spec: TensorSpec, stream: int | None = None) -> Shared:
    """Borrow a tensor for an input.

    Args:
        value: the tensor.
        spec: spec of the input.
        stream: handle of the CUDA stream that is to use it; its producer makes that wait for what computes it.

    Raises:
        InputError: another type than the input's, or not C-contiguous: either would need a copy.
    """
    try:
        capsule = value.__dlpack__() if stream is None else value.__dlpack__(stream=stream)
    except (BufferError, RuntimeError, TypeError) as error:
        raise InputError(f"{spec.name} can't be shared: {error}", "give tensor.detach()") from error
    pointer = _api.PyCapsule_GetPointer(capsule, _NAME)
    tensor = ctypes.cast(pointer, ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    dtype = _name(tensor.dtype)
    refuse_integers(dtype, spec)
    if dtype != spec.dtype:
        raise InputError(f"{spec.name} is {dtype} and the engine takes {spec.dtype}", "cast it on its device")
    if tensor.strides and not _is_contiguous(shape, [tensor.strides[axis] for axis in range(tensor.ndim)]):
        raise InputError(f"{spec.name} is not contiguous", "give tensor.contiguous()")
    return Shared(int(tensor.data or 0) + int(tensor.byte_offset), shape, dtype, capsule)


def _is_contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    wanted = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return 0 in shape or all(size == 1 or a == b for size, a, b in zip(shape, strides, wanted))


def _name(kind: _Type) -> str:
    names = {code: name for name, code in _CODES.items()}
    name = names.get(kind.code, f"type{kind.code}_")
    return "bool" if name == "bool" else f"{name}{kind.bits}"


def _type(dtype: str) -> _Type:
    name = dtype.rstrip("0123456789")
    return _Type(_CODES[name], int(dtype[len(name) :] or 8), 1)


class DeviceArray:
    """An output that stays where it was computed; ``torch.from_dlpack`` and ``cupy.from_dlpack`` share it.

    Args:
        address: of its first byte.
        owner: what frees the memory when nobody shares it any more.
        device: DLPack's kind and number of the device.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, owner: Any, device: tuple[int, int] = (CUDA, 0)
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self._owner = owner
        self._device = device

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype}, device={self._device})"

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """Return a capsule; the values are complete, so no stream has to wait for them.

        Raises:
            BufferError: a copy, or another device, is asked for.
        """
        if options.get("copy") or options.get("dl_device") not in (None, self._device):
            raise BufferError("a DeviceArray is shared as it is, where it is")
        return _exported(self)


_exports: dict[int, tuple[Any, ...]] = {}
"""What capsules in use need: structure, shape, and the array that owns the memory, by number."""
_numbers = itertools.count(1)


def _exported(array: DeviceArray) -> Any:
    number = next(_numbers)
    shape = (ctypes.c_int64 * max(1, len(array.shape)))(*array.shape)
    device = _Device(*array.__dlpack_device__())
    sizes = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    tensor = _Tensor(array.address, device, len(array.shape), _type(array.dtype), sizes, None, 0)  # no strides: dense
    managed = _Managed(tensor, number, _delete)
    _exports[number] = (managed, shape, array)
    return _api.PyCapsule_New(ctypes.addressof(managed), _NAME, ctypes.cast(_forget, ctypes.c_void_p))


def _drop(pointer: int) -> None:
    _exports.pop(ctypes.cast(pointer, ctypes.POINTER(_Managed)).contents.context, None)


_delete = _Deleter(_drop)

# The capsule is on its way out when this is called: an object made of it would bring it back, so its address is used.
_is_valid = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


def _drop_unused(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # a consumer renames the capsule that it takes
        _drop(_pointer_of(capsule, _NAME))


_forget = _Deleter(_drop_unused)
