//! Errors of planning.

/// Why a graph does not become a plan: the node, and what is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The command line named a target that is not built.
    #[error("`{found}` is no target; targets: {known}")]
    UnknownTarget {
        /// What was asked for.
        found: String,
        /// What there is.
        known: String,
    },
    /// Two targets of which an engine holds one.
    #[error(
        "an engine has one variant for a kind of device, and `{one}` and `{other}` are of one kind; leave one out"
    )]
    Several {
        /// One.
        one: String,
        /// The other.
        other: String,
    },
    /// A node cannot be planned.
    #[error("{node}: {why}")]
    Node {
        /// Name of the node.
        node: String,
        /// What is wrong.
        why: String,
    },
    /// The graph as a whole cannot be planned.
    #[error("{0}")]
    Graph(String),
}

impl TargetError {
    pub(crate) fn node(node: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Node { node: node.into(), why: why.into() }
    }
}
