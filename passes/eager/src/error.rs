//! Why a graph cannot be executed.

use bessemer_ir::GraphError;
use bessemer_ir::exec::BatchError;

/// Why the executor cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EagerError {
    /// The graph breaks a rule of its phase.
    #[error("the graph does not verify: {0}")]
    Graph(#[from] GraphError),
    /// The graph is fused.
    #[error("`{node}` is a fused {op}; the eager executor runs graphs before fusion (phase canonical)")]
    Fused {
        /// Name of the node.
        node: String,
        /// Its op.
        op: &'static str,
    },
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
    /// A token is no row of the embedding table.
    #[error("token {token} of a vocabulary of {vocab}; tokenise with this model's tokeniser")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the table.
        vocab: usize,
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
    /// The threads cannot be started.
    #[error("cannot start {threads} threads: {why}")]
    Threads {
        /// How many.
        threads: usize,
        /// What the system says.
        why: String,
    },
    /// Whoever observes a run stopped it.
    #[error("{why}")]
    Stopped {
        /// Why.
        why: String,
    },
}
