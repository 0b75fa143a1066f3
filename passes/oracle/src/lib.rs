//! The meaning of every IR op, in obvious f64 code.
