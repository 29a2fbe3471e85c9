"""Verify every sample of every batch: compare an engine with a reference, row by row, and with itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends import engine_origin, open_engine, resolve_engine
from trtbatch.backends.base import Session
from trtbatch.core import store
from trtbatch.core.batches import refuse_outside
from trtbatch.core.rows import Limit, random_inputs
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.errors import ArtifactError, UsageError
from trtbatch.onnx_graph.read import what_fixes_the_batch
from trtbatch.runtime.sources import read_samples
from trtbatch.util import environment
from trtbatch.util.log import note, warn
from trtbatch.util.notebook import html_table
from trtbatch.verification.checks import CHECKS, Finding, RowChecker
from trtbatch.verification.comparison import OutputResult, compare_outputs
from trtbatch.verification.references import Reference, SavedReference, find_onnx, open_reference

__all__ = ["VerifyPlan", "VerifyRequest", "VerifyResult", "plan_verify", "verify"]

Array = NDArray[Any]


@dataclass(frozen=True)
class VerifyRequest:
    """Request to verify an engine.

    Args:
        engine: engine to verify; None takes the newest in ``engines/`` that runs here.
        against: ``onnxruntime``, ``torch``, an ``.onnx`` or ``.npz`` file, or ``none``; None is ONNX Runtime if the
            ONNX file is available.
        batches: batch sizes; None is min, opt and max of every profile.
        input: samples to use, as for ``infer``; None draws random ones.
        rtol, atol: numpy's element-wise limits, instead of the tolerance of dtype and precision.
        device: number of the GPU.
        trust_code: whether the ``.pt2`` program of the torch reference may run the code that it holds.
        progress: called with each step.
    """

    engine: Path | None
    against: str | None = None
    batches: Sequence[int] | None = None
    input: str | None = None
    rtol: float | None = None
    atol: float | None = None
    seed: int = 42
    device: int = 0
    trust_code: bool = False
    progress: Callable[[str, float | None], None] = lambda words, share: None


@dataclass(frozen=True)
class VerifyResult:
    """Result of all comparisons and checks.

    Args:
        reference: description of the reference; None if there was none.
        checks: names of the checks without a reference, each run at every batch size.
        findings: failed checks.
        explanations: the findings in words, and the node that fixes the batch, if one is found.
        origins: where the engine, the batch sizes, the reference, the samples and the limit came from, in words.
    """

    engine: str
    backend: str
    precision: str
    weights: str
    reference: str | None
    batches: tuple[int, ...]
    checks: tuple[str, ...]
    findings: tuple[Finding, ...]
    explanations: tuple[str, ...]
    outputs: tuple[OutputResult, ...]
    passed: bool
    tools: dict[str, str]
    device: dict[str, str]
    environment: dict[str, Any]
    created: str
    format_version: int = 1
    origins: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        verdict = "right" if self.passed else "WRONG"
        return f"VerifyResult({self.engine!r}, {verdict} at batch {', '.join(map(str, self.batches))})"

    def _repr_html_(self) -> str:
        rows = [[each.batch, each.output, "right" if each.passed else "WRONG"] for each in self.outputs]
        rows += [[each.batch, each.output, each.message] for each in self.findings]
        return html_table(f"{self.engine} against {self.reference}", ["batch", "output", "verdict"], rows)


@dataclass(frozen=True)
class VerifyPlan:
    """Decisions of a run, made before the engine is opened.

    Args:
        reference: None where the engine is checked against itself alone.
        pool: different samples, one more than the largest batch has.
        limit: element-wise limits; None is the tolerance of dtype and precision.
        origins: where the engine, the batch sizes, the reference, the samples and the limit came from, in words.
    """

    request: VerifyRequest
    artifact: Artifact
    batches: tuple[int, ...]
    reference: Reference | None
    pool: dict[str, Array]
    limit: Limit | None
    origins: dict[str, str]


def plan_verify(request: VerifyRequest) -> VerifyPlan:
    """Decide what is compared with what; the reference and the samples are read, and the engine isn't opened.

    Raises:
        ProfileError: a batch is outside every profile.
        UsageError, InputError, ArtifactError: the reference or the samples aren't available.
    """
    for option, limit in (("`rtol`", request.rtol), ("`atol`", request.atol)):
        if limit is not None and limit < 0:
            raise UsageError(f"{option} {limit} lets nothing pass", "give a finite number from 0 on")
        if limit is not None and not math.isfinite(limit):
            raise UsageError(f"{option} {limit} lets everything pass", "give a finite number from 0 on")
    artifact = resolve_engine(request.engine, request.batches or ())
    sidecar = artifact.sidecar
    batches = tuple(dict.fromkeys(request.batches or sidecar.engine.corners))
    refuse_outside(sidecar.engine.profiles, batches, artifact.path.name)
    reference, reference_from = _reference(request, artifact)
    if isinstance(reference, SavedReference):
        reference.require_rows(max(batches))
    pool, pool_from = _pool(request, sidecar, reference, max(batches) + 1)
    given = request.rtol is not None or request.atol is not None
    return VerifyPlan(
        request,
        artifact,
        batches,
        reference,
        pool,
        Limit(0.0, request.rtol, request.atol) if given else None,
        {
            "engine": engine_origin(request.engine),
            "batches": "given" if request.batches else "min, opt and max of every profile",
            "reference": reference_from,
            "samples": pool_from,
            "limit": "given" if given else "the outputs' dtypes and the engine's precision",
        },
    )


def verify(request: VerifyRequest) -> VerifyResult:
    """Compare an engine with a reference and with itself; wrong rows are a result, not an exception.

    Raises:
        ProfileError: a batch is outside every profile.
        UsageError, InputError, ArtifactError: the reference or the samples aren't available.
    """
    plan = plan_verify(request)
    artifact, sidecar, reference = plan.artifact, plan.artifact.sidecar, plan.reference
    findings: list[Finding] = []
    outputs: list[OutputResult] = []
    with open_engine(artifact, request.device) as engine, engine.session() as session:
        checker = RowChecker.of(session, sidecar, max(plan.batches), pool=plan.pool)
        for batch in plan.batches:
            request.progress(f"batch {batch}: checking rows", None)
            findings += checker.check(batch)
            if reference is not None:
                request.progress(f"batch {batch}: comparing with the reference", None)
                outputs += _against(reference, session, checker.inputs(batch), batch, plan)
    _tell_numbers_that_are_none(outputs)
    return VerifyResult(
        engine=artifact.path.name,
        backend=sidecar.engine.backend or "",
        precision=sidecar.precision.realized or "",
        weights=sidecar.model.weights,
        reference=None if reference is None else reference.label,
        batches=plan.batches,
        checks=CHECKS,
        findings=tuple(findings),
        explanations=tuple(_explanations(findings, artifact)),
        outputs=tuple(outputs),
        passed=not findings and all(output.passed for output in outputs),
        tools=sidecar.build.tools,
        device=sidecar.build.device,
        environment=environment.describe(),
        created=store.now(),
        origins=plan.origins,
    )


def _reference(request: VerifyRequest, artifact: Artifact) -> tuple[Reference | None, str]:
    """Return the reference, and where it came from."""
    if request.against == "none":
        return None, "given"
    if request.against is not None:
        return open_reference(request.against, artifact, request.trust_code), "given"
    try:
        return open_reference("onnxruntime", artifact), "the ONNX file that the sidecar names"
    except ArtifactError as error:
        note(f"no reference: {error.problem}; checking the engine against itself only")
        return None, error.problem


def _pool(
    request: VerifyRequest, sidecar: Sidecar, reference: Reference | None, count: int
) -> tuple[dict[str, Array], str]:
    """Return `count` samples, those of the saved reference or of `input` first, then random ones; and their origin.

    No sample appears twice: rows that leak into each other show only where samples differ.

    Raises:
        UsageError, InputError: the samples aren't those of the saved outputs.
    """
    fresh = random_inputs(sidecar.inputs, count, request.seed)
    saved = reference if isinstance(reference, SavedReference) else None
    random = f"random, seed {request.seed}"
    if saved is not None and saved.inputs:
        pool, added = _topped_up(saved.inputs, fresh, sidecar, count)
        origin = "the saved outputs' own inputs"
    elif request.input is not None:
        given, names = read_samples(request.input, sidecar, count, request.seed)
        if saved is not None:
            saved.require_samples(names, count - 1)
        pool, added = _topped_up(given, fresh, sidecar, count)
        origin = "given"
    elif saved is not None:
        raise UsageError(f"{saved.label} hold no inputs", "pass the `input` (and `seed`) that they were made from")
    else:
        return fresh, random
    return pool, f"{origin}; the other {added} {random}" if added else origin


def _topped_up(
    given: Mapping[str, Array], fresh: Mapping[str, Array], sidecar: Sidecar, count: int
) -> tuple[dict[str, Array], int]:
    """Return the given samples, cut to `count` or filled up with fresh ones, and the number of fresh ones."""
    pool = {}
    missing = 0
    for spec in sidecar.inputs:
        axis = spec.batch_axis
        if axis is None:
            pool[spec.name] = given[spec.name]
            continue
        missing = max(missing, count - given[spec.name].shape[axis])
        both = np.concatenate([given[spec.name], fresh[spec.name]], axis=axis)
        pool[spec.name] = np.ascontiguousarray(np.take(both, np.arange(count), axis=axis))
    if missing > 0:
        note(f"{count - missing} samples given: {missing} random ones are added, to tell rows apart")
    return pool, missing


def _against(
    reference: Reference, session: Session, inputs: Mapping[str, Array], batch: int, plan: VerifyPlan
) -> list[OutputResult]:
    wanted = reference(inputs, batch)
    session.bind(inputs)
    session.run()
    sidecar = plan.artifact.sidecar
    return compare_outputs(session.fetch(), wanted, batch, sidecar.outputs, sidecar.precision.name, plan.limit)


def _tell_numbers_that_are_none(outputs: Sequence[OutputResult]) -> None:
    """Warn of NaN and infinities in rows that equal the reference's: correct, but useless."""
    for each in outputs:
        strange = sum(1 for row in each.rows if row.passed and (row.nan or row.inf))
        if strange:
            warn(
                f"{each.output}, batch {each.batch}: {strange} of {len(each.rows)} rows hold NaN or infinities, as the "
                "reference's do: equal, and of no use"
            )


def _explanations(findings: Sequence[Finding], artifact: Artifact) -> list[str]:
    """Return each finding in words, and the node that fixes the batch, if the ONNX file is at hand."""
    if not findings:
        return []
    lines = [str(finding) for finding in findings]
    try:
        culprit = what_fixes_the_batch(find_onnx(artifact))
    except ArtifactError:
        return lines
    return lines if culprit is None else [*lines, f"the batch is probably fixed in the model: {culprit}"]
