//! Graph passes: canonical, fusion, precision, layout.
//!
//! [`pipeline`] is the whole order on one screen. A pass is a function from a graph to how many rewrites it made; it declares its
//! [`Effect`](pipeline::Effect), and the tests of this crate hold it to that against the oracle.

mod canonical;
mod error;
mod fusion;
mod layout;
mod pattern;
pub mod pipeline;
mod precision;
pub mod testing;

pub use canonical::equalise::{Pair, Scale, pairs};
pub use error::{Cause, PassError};
pub use pipeline::Assigned;
pub use precision::{Override, PrecisionPolicy, is_assignable, makes_routes, scheme_of, weights};
