//! Hand-written CPU kernels and the table that registers and tests them.
