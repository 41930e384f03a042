"""What the limits of GPU nodes say of loading and computing: derived, until it is measured there.

Computing a token of a prompt takes at least two floating-point operations for each parameter of the
model; its attention comes on top and is left out. Half the peak rate of the GPU's data sheet
(NVIDIA's L4, A100 and H100 SXM, dense, bfloat16) is assumed. Loading a token takes its bytes of KV
(2 x layers x KV heads x head size x 2 bytes, from config.json of meta-llama/Llama-3.1-8B and -70B)
at the rate of the disk, or at that of the PCIe link if that is lower. Nothing of lmkv's own is in
it.
"""

from __future__ import annotations

from dataclasses import dataclass

PART_OF_PEAK = 0.5
# One-way, GB/s, with pinned memory: nvbandwidth measures 52 to 55 over PCIe 5 x16, 25 over 4.
PCIE_5, PCIE_4 = 52.0, 25.0
# GB/s of reads: data sheets of single NVMe SSDs of PCIe 4 and 5, and four of the latter.
DISKS = {"one SSD, PCIe 4": 7.0, "one SSD, PCIe 5": 14.0, "four SSDs, PCIe 5": 56.0}


@dataclass(frozen=True)
class Node:
    """A model on GPUs."""

    model: str
    parameters: float
    kv_bytes: int  # of a token, in bfloat16
    gpu: str
    gpus: int
    peak_flops: float  # of one GPU
    pcie_gbps: float  # of one GPU

    @property
    def name(self) -> str:
        """As a chart says it."""
        return f"{self.model}, {self.gpus} x {self.gpu}"

    @property
    def computed_per_s(self) -> float:
        """Tokens of a prompt."""
        return PART_OF_PEAK * self.peak_flops * self.gpus / (2 * self.parameters)

    def loaded_per_s(self, disk_gbps: float) -> float:
        """Tokens, from one disk or array that all its GPUs share."""
        return min(disk_gbps, self.pcie_gbps * self.gpus) * 1e9 / self.kv_bytes

    @property
    def break_even_gbps(self) -> float:
        """The rate of a disk from which on loading is quicker."""
        return self.computed_per_s * self.kv_bytes / 1e9


def _kv_bytes(layers: int, kv_heads: int, head_size: int) -> int:
    return 2 * layers * kv_heads * head_size * 2


NODES = (
    Node("Llama-3.1-8B", 8.03e9, _kv_bytes(32, 8, 128), "L4", 1, 121e12, PCIE_4),
    Node("Llama-3.1-8B", 8.03e9, _kv_bytes(32, 8, 128), "A100", 1, 312e12, PCIE_4),
    Node("Llama-3.1-8B", 8.03e9, _kv_bytes(32, 8, 128), "H100", 1, 989e12, PCIE_5),
    Node("Llama-3.1-70B", 70.6e9, _kv_bytes(80, 8, 128), "A100", 4, 312e12, PCIE_4),
    Node("Llama-3.1-70B", 70.6e9, _kv_bytes(80, 8, 128), "H100", 4, 989e12, PCIE_5),
)
