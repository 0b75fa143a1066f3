//! The fast node-by-node executor of the unfused graph: the interpreted side of every comparison.
