"""Run in a process of its own by `live.py`: starts CUDA through the driver's library and prints JSON."""

import ctypes
import json


def main():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"state": "absent"}
    code = cuda.cuInit(0)
    if code != 0:
        return {"state": "refused", "code": code}
    count = ctypes.c_int(0)
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        return {"state": "refused", "code": code}
    return {"state": "answered", "devices": count.value}


if __name__ == "__main__":
    print(json.dumps(main()))
