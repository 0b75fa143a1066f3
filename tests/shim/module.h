// Kernels as a shared library: what the shim's driver loads in place of a cubin. `kernels` is the table of what the text defines, and
// SHIM_ARCH the architecture that it claims to be compiled for.
extern "C" __attribute__((visibility("default"))) const shim::Module shim_module = {
    SHIM_ARCH, kernels, sizeof kernels / sizeof *kernels, shim::run, shim::catch_faults,
};
