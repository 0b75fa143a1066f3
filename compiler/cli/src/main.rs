//! The command line of Bessemer.

fn main() {}
