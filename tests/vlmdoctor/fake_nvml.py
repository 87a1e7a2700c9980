"""A libnvidia-ml.so.1 that answers for GPUs that are not there, built with the C compiler at hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const char *get(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}
static int count(void) { return atoi(get("FAKE_GPUS", "0")); }
int nvmlInitWithFlags(unsigned flags) {
    const char *mode = get("FAKE_INIT", "0");
    if (!strcmp(mode, "hang")) for (;;) sleep(60);
    if (!strcmp(mode, "crash")) abort();
    return atoi(mode);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 18 ? "Driver/library version mismatch" : "an error"; }
int nvmlDeviceGetCount_v2(unsigned *found) { *found = count(); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if ((int)index == atoi(get("FAKE_LOST", "-1"))) return 15;
    *handle = (void *)(size_t)(index + 1);
    return (int)index < count() ? 0 : 2;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    /* The UUIDs of all GPUs, separated by commas. */
    const char *all = get("FAKE_UUIDS", "GPU-aaaa0000,GPU-aabb0000,GPU-bbbb0000,GPU-cccc0000");
    size_t index = (size_t)handle - 1;
    while (index-- && all) { all = strchr(all, ','); if (all) all++; }
    if (!all) return 999;
    size_t size = strcspn(all, ",");
    if (size + 1 > length) return 7;
    memset(text, 0, length);
    memcpy(text, all, size);
    return 0;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    strncpy(text, get("FAKE_NAME", "NVIDIA L4"), length);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    if (getenv("FAKE_UNIFIED")) return 3;
    memory[0] = 24ull << 30; memory[2] = (unsigned long long)atoi(get("FAKE_USED_GIB", "0")) << 30;
    memory[1] = memory[0] - memory[2];
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    *major = 8; *minor = 9;
    return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 13000; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    strncpy(text, get("FAKE_DRIVER", "580.65.06"), length);
    return 0;
}
"""
CUDA = r"""
#include <stdlib.h>
#include <unistd.h>
int cuInit(unsigned flags) {
    const char *code = getenv("FAKE_CUINIT");
    if (code && code[0] == 'h') for (;;) sleep(60);
    return code ? atoi(code) : 0;
}
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
"""


def build(folder: Path) -> Path:
    """The folder with the two libraries, for LD_LIBRARY_PATH; without a compiler the test is skipped."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the stand-in for NVML with")
    for name, text in (("libnvidia-ml.so.1", SOURCE), ("libcuda.so.1", CUDA)):
        source = folder / f"{name}.c"
        source.write_text(text)
        library = folder / name
        command = [compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)]
        subprocess.run(command, check=True, timeout=60)
    return folder
