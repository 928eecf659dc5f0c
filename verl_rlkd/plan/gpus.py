"""GPUs by name: memory, peak rates and a price. Vendors' data sheets; rates are dense and without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory_gib: float
    """What CUDA reports, which is less than the name says."""
    tflops: float
    """Peak of bfloat16 with float32 accumulation."""
    bandwidth_gbs: float
    """Peak of its memory, GB/s."""
    price: float
    """Per hour; assumed, as prices differ by a factor of four between providers."""

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * GIB


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="H100", memory_gib=79.1, tflops=989, bandwidth_gbs=3350, price=2.50),
        Gpu(name="H200", memory_gib=139.8, tflops=989, bandwidth_gbs=4800, price=3.50),
        Gpu(name="A100", memory_gib=79.1, tflops=312, bandwidth_gbs=2039, price=1.50),
        Gpu(name="L40S", memory_gib=44.4, tflops=362, bandwidth_gbs=864, price=0.90),
        Gpu(name="RTX4090", memory_gib=23.5, tflops=165, bandwidth_gbs=1008, price=0.40),
    )
}
"""H100 SXM, H200 SXM, A100 SXM of 80 GB, L40S, GeForce RTX 4090."""
