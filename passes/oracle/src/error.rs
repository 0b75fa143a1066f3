//! Why a graph has no meaning, or a batch none in it.

use bessemer_ir::GraphError;
use bessemer_ir::exec::BatchError;

/// Why the oracle cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OracleError {
    /// The graph breaks a rule of its phase.
    #[error("the graph does not verify: {0}")]
    Graph(#[from] GraphError),
    /// The batch contradicts itself.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A constant cannot be made from the source.
    #[error("constant `{node}`: {why}")]
    Constant {
        /// Name of the node.
        node: String,
        /// What is wrong.
        why: String,
    },
    /// The steps of another executor are not those of the graph.
    #[error("the steps do not follow the graph: {why}")]
    Trace {
        /// The first disagreement.
        why: String,
    },
    /// A node cannot compute what it is given.
    #[error("`{node}` ({op}): {why}")]
    Node {
        /// Name of the node.
        node: String,
        /// Its op.
        op: &'static str,
        /// What is wrong.
        why: String,
    },
}
