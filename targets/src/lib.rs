//! Kernel selection, schedule, memory plan, loop nests and code generators, one folder a device.
