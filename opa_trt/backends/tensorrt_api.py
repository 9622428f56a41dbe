"""The vendor's module: TensorRT 10.12 and later, TensorRT 11 and TensorRT-RTX behind one class.

Every branch between their versions is here. Their calls say ``None``, ``False`` or ``-1`` where
they fail, and tell why to a logger: here that becomes an exception with the logger's words.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opa_trt.errors import OpaError
from opa_trt.tree import Segment, Target, TensorSpec

log = logging.getLogger(__name__)

FIT = ("valid", "suboptimal", "no GPU", "not judged")  # verdicts that forbid no use of a plan
_DTYPES = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16"}


class Refusal(RuntimeError):
    """The vendor did not do it; the text has its own words. ``Backend`` turns it into ours."""


@dataclass(frozen=True)
class Binding:
    """An input or output of a network or an engine; -1 is a size that is open."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Words:
    """The last errors that a vendor's logger was told."""

    def __init__(self) -> None:
        self._said: deque[str] = deque(maxlen=8)

    def hear(self, level: int, text: str) -> None:
        """Keep errors, log warnings; ``level`` is 0 (internal error), 1 (error), 2 (warning)…"""
        if level <= 1:
            self._said.append(text.strip())
        elif level == 2:
            log.info("%s", text.strip())

    def clear(self) -> None:
        """Forget them."""
        self._said.clear()

    def take(self) -> str:
        """All of them as one text, each once; they are forgotten."""
        text = " | ".join(dict.fromkeys(self._said))
        self._said.clear()
        return text.replace("OutOfMemory", "out of memory")


class TensorRTApi:
    """What we call of the vendor, the same for every version.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``, imported.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.logger, self.words = _logger(module)

    def done(self, result: Any, what: str, *, unsaid: str = "it does not say why") -> Any:
        """``result`` of a call, unless the vendor says by it (None, False, -1) that it failed.

        Raises:
            Refusal: names ``what`` failed, and why in the vendor's words (``unsaid`` if none).
        """
        if result is None or result is False or (isinstance(result, int) and result < 0):
            message = f"{what} fails: {self.words.take() or unsaid}"
            raise Refusal(message)
        return result

    @contextmanager
    def explained(self) -> Iterator[None]:
        """The vendor's own exceptions within say what its logger was told."""
        self.words.clear()
        try:
            yield
        except (OpaError, Refusal):
            raise
        except Exception as exc:
            raise Refusal(" | ".join(filter(None, (str(exc), self.words.take())))) from exc

    # --- building -------------------------------------------------------------------------------

    def network(self, builder: Any) -> Any:
        """An empty network whose types are those of the model (11 and RTX know no other)."""
        strongly_typed = int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return self.done(builder.create_network(1 << strongly_typed), "create_network")

    def parse(self, network: Any, model: bytes) -> None:
        """Fill ``network`` from an ONNX file."""
        parser = self.module.OnnxParser(network, self.logger)
        if not parser.parse(model):
            said = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            message = f"the ONNX parser says: {'; '.join(said) or self.words.take()}"
            raise Refusal(message)

    def config(self, builder: Any) -> Any:
        """fp32 means fp32; where the vendor can promise it, engines bring no memory of their own
        to a run, which CUDA graphs need."""
        config, flags = builder.create_builder_config(), self.module.BuilderFlag
        config.clear_flag(flags.TF32)
        if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)
        return config

    def set_batches(
        self, builder: Any, config: Any, inputs: Sequence[TensorSpec], target: Target
    ) -> None:
        """Allow every batch of the target; tuned for the largest. ``inputs`` are the network's:
        a name that it lacks would be taken without a word."""
        profile = builder.create_optimization_profile()
        for spec in inputs:
            batches = (target.min_batch, target.max_batch, target.max_batch)
            profile.set_shape(spec.name, *((batch, *spec.shape) for batch in batches))
        self.done(config.add_optimization_profile(profile), "add_optimization_profile")

    def build(self, builder: Any, network: Any, config: Any) -> bytes:
        """The plan."""
        plan = builder.build_serialized_network(network, config)
        return bytes(self.done(plan, "build_serialized_network"))

    def network_bindings(self, network: Any) -> tuple[list[Binding], list[Binding]]:
        """Inputs and outputs of a parsed network."""
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        return [_binding(t) for t in inputs], [_binding(t) for t in outputs]

    # --- plans and engines ----------------------------------------------------------------------

    def verdict(self, plan: bytes) -> str:
        """By a plan's header: one of ``FIT``, or why it cannot run here. Only RTX judges plans."""
        runtime = self.module.Runtime(self.logger)
        if not hasattr(runtime, "get_engine_validity"):
            return "not judged"
        found, bits = runtime.get_engine_validity(plan[: int(runtime.engine_header_size)])
        self.words.clear()
        if found != self.module.EngineValidity.INVALID:
            return str(found.name).lower()
        named = self.module.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, bit in named if int(bits) & int(bit)]
        # Without a driver it judges nothing, and gives no reason.
        return ", ".join(reasons).lower().replace("_", " ") or "no GPU"

    def deserialise(self, plan: bytes) -> tuple[Any, Any]:
        """(runtime, engine); the runtime must outlive the engine."""
        runtime = self.module.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        return runtime, self.done(engine, "deserialize_cuda_engine")

    def engine_bindings(self, engine: Any) -> tuple[list[Binding], list[Binding]]:
        """Inputs and outputs of an engine."""
        inputs: list[Binding] = []
        outputs: list[Binding] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            first = engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT
            shape = tuple(engine.get_tensor_shape(name))
            found = Binding(name, _dtype(engine.get_tensor_dtype(name)), shape)
            (inputs if first else outputs).append(found)
        return inputs, outputs

    def context(self, engine: Any) -> Any:
        """An execution context without scratch memory, whose kernels change during no run."""
        memory = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        kernels = getattr(self.module, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:
            context = engine.create_execution_context(memory)
        else:
            config = engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
            config.set_execution_context_allocation_strategy(memory)
            context = engine.create_execution_context(config)
        return self.done(context, "create_execution_context", unsaid="out of memory, most likely")

    def scratch_bytes(self, engine: Any) -> int:
        """Scratch memory of every context of ``engine``, in bytes."""
        return int(engine.device_memory_size_v2)

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether a run may be captured into a CUDA graph, as bound now."""
        asked = getattr(context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(stream))


def mismatch(segment: Segment, found: tuple[list[Binding], list[Binding]], target: Target) -> str:
    """What differs between a segment's tensors and those found; empty where nothing does.

    Sizes after the batch may be open in outputs, which the vendor infers at run time.
    """
    for kind, specs, bindings in (
        ("inputs", segment.inputs, found[0]),
        ("outputs", segment.outputs, found[1]),
    ):
        by_name = {binding.name: binding for binding in bindings}
        if by_name.keys() != {spec.name for spec in specs}:
            return f"{kind} {sorted(by_name)} where the segment has {[s.name for s in specs]}"
        for spec in specs:
            binding, batches = by_name[spec.name], {-1}
            if target.min_batch == target.max_batch:
                batches.add(target.max_batch)
            sizes = binding.shape[1:]
            open_sizes = tuple(
                want if kind == "outputs" and size == -1 else size
                for size, want in zip(sizes, spec.shape, strict=False)
            )
            fits = len(sizes) == len(spec.shape) and open_sizes == spec.shape
            if not fits or binding.shape[0] not in batches or binding.dtype != spec.dtype:
                wanted = (-1, *spec.shape)
                have = f"{spec.name} as {binding.shape} {binding.dtype}"
                return f"{have} where the segment has {wanted} {spec.dtype}"
    return ""


@functools.cache
def _logger(module: Any) -> tuple[Any, Words]:
    """One logger a module for the whole process: the vendor keeps the first that it is given."""
    words = Words()

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            words.hear(int(severity), msg)

    return Logger(), words


def _parser_error(error: Any) -> str:
    """A parser's error with the name and the operator of its node, where it has one."""
    where = [str(getattr(error, fact)()) for fact in ("node_name", "node_operator")]
    return f"{' '.join(where)}: {error.desc()}" if any(where) else str(error.desc())


def _binding(tensor: Any) -> Binding:
    return Binding(tensor.name, _dtype(tensor.dtype), tuple(tensor.shape))


def _dtype(value: Any) -> str:
    return _DTYPES.get(value.name, str(value.name).lower())
