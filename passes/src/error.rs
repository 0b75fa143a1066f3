//! What can go wrong in a pass. A failing pass fails the build.

use bessemer_format::QuantScheme;
use bessemer_ir::GraphError;

/// A pipeline stopped.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// An option names a pass that there is not.
    #[error("`{name}` is no pass; passes: {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// All names in order.
        known: String,
    },
    /// A plan was asked for without the pass that it stands on.
    #[error(
        "no plan without `{name}`: every kernel reads packed weights; switch other passes off, or look at the graph with `--stop-after quantised`"
    )]
    Required {
        /// Its name.
        name: &'static str,
    },
    /// The graph that came in is not a legal one.
    #[error("the graph is not valid before any pass: {0}")]
    Input(GraphError),
    /// A pass could not do its work.
    #[error("pass {pass}: {cause}")]
    Failed {
        /// Its name.
        pass: &'static str,
        /// Why.
        cause: Cause,
    },
    /// A pass left a graph that the verifier refuses: our mistake.
    #[error(
        "pass {pass} left an invalid graph: {error}; please report this, and build with `--disable {pass}` meanwhile"
    )]
    Invalid {
        /// Its name.
        pass: &'static str,
        /// What the verifier says.
        error: GraphError,
    },
}

/// Why a pass failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// A rewrite was refused.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The target cannot hold a weight in the scheme that the policy gives it.
    #[error(
        "weight `{weight}`: target {target} cannot hold {scheme}: {why}; choose another precision or group size"
    )]
    Scheme {
        /// Name of the constant.
        weight: String,
        /// The target.
        target: String,
        /// The scheme.
        scheme: Box<QuantScheme>,
        /// The target's reason.
        why: String,
    },
}
