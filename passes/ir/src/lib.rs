//! The graph IR of the compiler.
//!
//! One table ([`op`]) says which ops there are; [`infer`] says which types they take and give; [`Graph`] is the only way to
//! build and change a graph; [`verify`] holds it to the rules of a [`Phase`]. What an op computes is defined by the crate
//! `bessemer-oracle` and nowhere else.
//!
//! A constant is a [`Recipe`], never bytes: where its numbers come from and what is done to them on the way into the engine.

pub mod attr;
pub mod exec;
pub mod graph;
pub mod infer;
pub mod op;
pub mod phase;
pub mod quantise;
pub mod recipe;
pub mod rounded;
pub mod stored;
pub mod target;
pub mod testing;
pub mod text;
pub mod types;
pub mod verify;

pub use graph::{Graph, GraphError, NodeId, Value};
pub use op::Op;
pub use phase::Phase;
pub use recipe::{Origin, Recipe, WeightSource};
pub use stored::Stored;
pub use target::TargetInfo;
pub use types::{DType, Dim, Encoding, Layout, TensorType};
