//! A small Llama-like graph with random weights, for the tests of every crate above.

use crate::attr::{BinaryKind, Computes, Epilogue, RopeStyle, Segment, UnaryKind};
use crate::graph::{Graph, GraphError, NodeId, Value};
use crate::op::Op;
use crate::recipe::{Origin, Recipe};
use bessemer_format::plan::{Choice, Input, Score};
use bessemer_format::{Compute, QuantScheme};

/// Experts that a token takes.
const EXPERTS_OF_A_TOKEN: u32 = 2;

/// What the small model looks like. The default is valid; change a field with struct update syntax.
#[derive(Clone, Debug)]
pub struct TinyConfig {
    /// Token ids.
    pub vocab: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Width of the feed-forward layer.
    pub ffn: u64,
    /// Layers.
    pub layers: u32,
    /// Whether the head reads the embedding table.
    pub tied: bool,
    /// Whether q, k and v have a bias.
    pub bias: bool,
    /// Which elements RoPE pairs.
    pub style: RopeStyle,
    /// What every linear computes in.
    pub compute: Compute,
    /// Scheme of every matrix.
    pub scheme: QuantScheme,
    /// What attention computes in.
    pub attention: Computes,
    /// Experts in place of the feed-forward network, of which each token takes two; 0 for none.
    pub experts: u32,
    /// Seed of all weights.
    pub seed: u64,
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            vocab: 96,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 128,
            layers: 2,
            tied: false,
            bias: false,
            style: RopeStyle::Half,
            compute: Compute::F32,
            scheme: QuantScheme::F32,
            attention: Compute::F32.into(),
            experts: 0,
            seed: 1,
        }
    }
}

/// Builds the graph in phase `Imported`. Fails where the extents contradict each other.
pub fn tiny_llama(config: &TinyConfig) -> Result<Graph, GraphError> {
    let mut b = Builder { graph: Graph::default(), config, constants: 0 };
    let c = config;
    let (q_width, kv_width) =
        (u64::from(c.heads) * u64::from(c.head_dim), u64::from(c.kv_heads) * u64::from(c.head_dim));
    let tokens = b.add("tokens", Op::Input { input: Input::Tokens }, &[])?;
    let positions = b.add("positions", Op::Input { input: Input::Positions }, &[])?;
    let logit_rows = b.add("logit_rows", Op::Input { input: Input::LogitRows }, &[])?;
    let table = b.matrix("embed", c.vocab, c.hidden)?;
    let half = c.head_dim / 2;
    let inv_freq = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
    let rope = b.add("rope_table", Op::RopeTable { inv_freq, factor: 1.0 }, &[positions.into()])?;
    let mut x = b.add("x", Op::Embed {}, &[tokens.into(), table.into()])?;
    let mut states = Vec::new();
    for layer in 0..c.layers {
        let name = |part: &str| format!("layer{layer}.{part}");
        let h = b.norm(&name("attn_norm"), x)?;
        let q = b.linear(&name("q"), h, q_width, c.hidden, c.bias)?;
        let k = b.linear(&name("k"), h, kv_width, c.hidden, c.bias)?;
        let v = b.linear(&name("v"), h, kv_width, c.hidden, c.bias)?;
        let rotate = |heads| Op::Rope { style: c.style, heads };
        let q = b.add(&name("q_rope"), rotate(c.heads), &[q.into(), rope.into()])?;
        let k = b.add(&name("k_rope"), rotate(c.kv_heads), &[k.into(), rope.into()])?;
        let state = Op::State { layer, kv_heads: c.kv_heads, head_dim: c.head_dim };
        let state = b.add(&name("state"), state, &[])?;
        let append = Op::Append { kv_heads: c.kv_heads };
        let state = b.add(&name("append"), append, &[state.into(), k.into(), v.into()])?;
        states.push(Value::from(state));
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let attention = Op::Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            scale,
            window: None,
            softcap: None,
            compute: c.attention,
        };
        let a = b.add(&name("attention"), attention, &[q.into(), state.into()])?;
        let o = b.linear(&name("o"), a, c.hidden, q_width, false)?;
        x = b.binary(&name("attn_add"), BinaryKind::Add, x, o)?;
        let h = b.norm(&name("ffn_norm"), x)?;
        let routed = if c.experts > 0 { Some(b.route(&name("route"), h)?) } else { None };
        let project = |b: &mut Builder<'_>, part: &str, x, n, k| match routed {
            Some((chosen, _)) => b.stack(&name(part), x, chosen, n, k),
            None => b.linear(&name(part), x, n, k, false),
        };
        let gate = project(&mut b, "gate", h, c.ffn, c.hidden)?;
        let up = project(&mut b, "up", h, c.ffn, c.hidden)?;
        let act = b.add(&name("silu"), Op::Unary { kind: UnaryKind::Silu }, &[gate.into()])?;
        let act = b.binary(&name("mul"), BinaryKind::Mul, act, up)?;
        let mut down = project(&mut b, "down", act, c.hidden, c.ffn)?;
        if let Some((_, weights)) = routed {
            down = b.add(&name("combine"), Op::Combine {}, &[down.into(), weights.into()])?;
        }
        x = b.binary(&name("ffn_add"), BinaryKind::Add, x, down)?;
    }
    let x = b.norm("norm", x)?;
    let x = b.add("selected", Op::SelectRows {}, &[x.into(), logit_rows.into()])?;
    let head = if c.tied { table } else { b.matrix("head.weight", c.vocab, c.hidden)? };
    let logits = b.linear_with("head", x, c.vocab, &[head.into()], false)?;
    let mut results = vec![Value::from(logits)];
    results.extend(states);
    b.add("output", Op::Output {}, &results)?;
    Ok(b.graph)
}

struct Builder<'a> {
    graph: Graph,
    config: &'a TinyConfig,
    constants: u64,
}

impl Builder<'_> {
    fn add(&mut self, name: &str, op: Op, operands: &[Value]) -> Result<NodeId, GraphError> {
        self.graph.add(name, op, operands)
    }

    /// A constant of its own random stream.
    fn random(
        &mut self,
        name: &str,
        shape: &[u64],
        scale: f32,
        scheme: QuantScheme,
    ) -> Result<NodeId, GraphError> {
        self.constants += 1;
        let seed = self.config.seed.wrapping_mul(1000).wrapping_add(self.constants);
        let recipe =
            Recipe { origin: Origin::Random { seed, scale }, shape: shape.to_vec(), transforms: Vec::new() };
        self.add(name, Op::Const { recipe: recipe.converted(scheme) }, &[])
    }

    /// Scaled so that a product with it keeps the magnitude of its input: uniform numbers have a third of their bound's square as variance.
    fn matrix(&mut self, name: &str, n: u64, k: u64) -> Result<NodeId, GraphError> {
        self.random(name, &[n, k], (3.0 / k as f32).sqrt(), self.config.scheme)
    }

    fn norm(&mut self, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
        let w = self.random(&format!("{name}.weight"), &[self.config.hidden], 2.0, QuantScheme::F32)?;
        self.add(name, Op::RmsNorm { eps: 1e-5 }, &[x.into(), w.into()])
    }

    fn binary(&mut self, name: &str, kind: BinaryKind, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
        self.add(name, Op::Binary { kind }, &[a.into(), b.into()])
    }

    /// The experts of each row of `x`, and what they count.
    fn route(&mut self, name: &str, x: NodeId) -> Result<(NodeId, NodeId), GraphError> {
        let experts = self.config.experts;
        let (score, top_k) = (Score::Softmax, EXPERTS_OF_A_TOKEN.min(experts));
        let logits = self.linear(&format!("{name}.logits"), x, experts.into(), self.config.hidden, false)?;
        let choice = Choice { top_k, score, groups: 1, best_groups: 1, group_keys: 1 };
        let chosen = self.add(name, Op::Route { choice }, &[logits.into()])?;
        let weights = Op::RouteWeights { score, renormalise: true, scale: 1.0 };
        Ok((chosen, self.add(&format!("{name}.weights"), weights, &[logits.into(), chosen.into()])?))
    }

    /// `x`, or the part of a slot of it, times the expert's weight.
    fn stack(&mut self, name: &str, x: NodeId, chosen: NodeId, n: u64, k: u64) -> Result<NodeId, GraphError> {
        let groups = self.config.experts;
        let weight = self.matrix(&format!("{name}.weight"), u64::from(groups) * n, k)?;
        let op = Op::GroupedLinear {
            groups,
            slots: EXPERTS_OF_A_TOKEN.min(groups),
            routed: true,
            segments: vec![Segment { name: format!("{name}.weight"), width: n, bias: false }],
            epilogue: Epilogue::None,
            compute: self.config.compute.into(),
        };
        self.add(name, op, &[x.into(), chosen.into(), weight.into()])
    }

    fn linear(&mut self, name: &str, x: NodeId, n: u64, k: u64, bias: bool) -> Result<NodeId, GraphError> {
        let mut weights = vec![Value::from(self.matrix(&format!("{name}.weight"), n, k)?)];
        if bias {
            weights.push(self.random(&format!("{name}.bias"), &[n], 0.5, QuantScheme::F32)?.into());
        }
        self.linear_with(name, x, n, &weights, bias)
    }

    fn linear_with(
        &mut self,
        name: &str,
        x: NodeId,
        n: u64,
        weights: &[Value],
        bias: bool,
    ) -> Result<NodeId, GraphError> {
        let segment = Segment { name: format!("{name}.weight"), width: n, bias };
        let op = Op::Linear {
            segments: vec![segment],
            epilogue: Epilogue::None,
            compute: self.config.compute.into(),
        };
        let mut operands = vec![Value::from(x)];
        operands.extend(weights);
        self.add(name, op, &operands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_verify_and_round_trip_as_text() {
        for (tied, bias, kv_heads) in [(false, false, 2), (true, true, 4), (true, false, 1)] {
            let config = TinyConfig { tied, bias, kv_heads, ..TinyConfig::default() };
            let graph = tiny_llama(&config).unwrap();
            crate::verify::verify(&graph).unwrap();
            let text = crate::text::print(&graph);
            assert_eq!(crate::text::print(&crate::text::parse(&text).unwrap()), text);
        }
    }

    #[test]
    fn contradicting_extents_are_an_error() {
        assert!(tiny_llama(&TinyConfig { kv_heads: 3, ..TinyConfig::default() }).is_err());
    }
}
