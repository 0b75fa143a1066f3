//! The contract between compiler and runtime: file format, quantisation schemes, plan.
