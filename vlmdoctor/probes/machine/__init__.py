"""The machine: files, packages, devices and the driver, without importing torch."""
