"""Xid errors of NVIDIA's driver that tell of broken hardware."""

from __future__ import annotations

# Codes that tell of the GPU itself; others (13, 31, 43, 45 ...) are mostly a program's own mistakes.
HARDWARE = {
    48: "a memory error that could not be corrected",
    62: "its firmware halted",
    64: "a memory row could not be remapped",
    74: "an NVLink failed",
    79: "it fell off the bus",
    92: "too many memory errors",
    95: "a memory error spread beyond one program",
    119: "its firmware (GSP) does not answer",
    120: "its firmware (GSP) failed",
    140: "a memory error that could not be corrected",
    143: "its firmware (GSP) could not be started",
    154: "it needs a reset",
}
