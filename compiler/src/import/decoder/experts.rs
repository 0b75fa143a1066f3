//! Mixtures of experts in place of the feed-forward network.

use super::{Decoder, Naming};
use crate::import::build::Builder;
use crate::import::config::{Fields, Harmless};
use crate::import::error::ImportError;
use bessemer_format::plan::{Choice, Score};
use bessemer_ir::Value;
use bessemer_ir::attr::{BinaryKind, UnaryKind};

/// A mixture of experts in every block.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// Width of an expert.
    pub ffn: usize,
    /// How a token's experts are chosen.
    pub choice: Choice,
    /// Whether the weights of a token's experts add up to 1.
    pub renormalise: bool,
    /// What they are called in Hugging Face.
    pub names: ExpertNames,
}

/// Names below a block in Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The router.
    pub router: &'static str,
    /// What stands before the number of an expert.
    pub experts: &'static str,
    /// The projections of an expert: gate, up, down.
    pub projections: [&'static str; 3],
}

/// Most experts of a block: what an engine's plan can hold.
const MOST_EXPERTS: usize = 4096;

impl Experts {
    /// `top_k` of `count` experts by their softmax. `keys` are those of `top_k` and of `count`, for errors.
    pub fn by_softmax(
        fields: &Fields,
        keys: [&str; 2],
        ffn: usize,
        renormalise: bool,
        names: ExpertNames,
    ) -> Result<Self, ImportError> {
        let [top_k, count] = [fields.required_count(keys[0])?, fields.required_count(keys[1])?];
        if count > MOST_EXPERTS {
            return Err(fields.error(keys[1], format!("at most {MOST_EXPERTS}"), "correct the value"));
        }
        if top_k > count {
            return Err(fields.error(keys[0], format!("at most the {count} experts"), "correct the value"));
        }
        fields.skip(&[Harmless {
            reason: "the balance of experts in training, and whether their logits are shown",
            keys: &["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"],
        }]);
        let score = Score::Softmax;
        let choice = Choice { top_k: top_k as u32, score, groups: 1, best_groups: 1, group_keys: 1 };
        Ok(Self { count, ffn, choice, renormalise, names })
    }

    /// Name of the router's weight.
    fn router(&self, naming: Naming, layer: usize) -> String {
        match naming {
            Naming::HuggingFace => format!("model.layers.{layer}.{}.weight", self.names.router),
            Naming::Gguf => format!("blk.{layer}.ffn_gate_inp.weight"),
        }
    }

    /// Names of the tensors of a projection: one an expert, or one of all.
    fn projection(&self, naming: Naming, layer: usize, which: usize) -> Vec<String> {
        let ExpertNames { experts, projections, .. } = self.names;
        match naming {
            Naming::HuggingFace => (0..self.count)
                .map(|e| format!("model.layers.{layer}.{experts}.{e}.{}.weight", projections[which]))
                .collect(),
            Naming::Gguf => {
                vec![format!("blk.{layer}.ffn_{}_exps.weight", ["gate", "up", "down"][which])]
            }
        }
    }

    /// The tensors of a block with their shapes.
    pub(super) fn tensors(
        &self,
        hidden: usize,
        naming: Naming,
        layer: usize,
    ) -> impl Iterator<Item = (String, Vec<usize>)> {
        let router = (self.router(naming, layer), vec![self.count, hidden]);
        let stacks = (0..3).flat_map(move |which| {
            let mut shape = if which == 2 { vec![hidden, self.ffn] } else { vec![self.ffn, hidden] };
            if naming == Naming::Gguf {
                shape.insert(0, self.count);
            }
            self.projection(naming, layer, which).into_iter().map(move |name| (name, shape.clone()))
        });
        std::iter::once(router).chain(stacks)
    }

    /// The network of a block, for normed rows `h`.
    pub(super) fn build(
        &self,
        b: &mut Builder<'_>,
        d: &Decoder,
        layer: usize,
        h: Value,
    ) -> Result<Value, ImportError> {
        let name = |what: &str| format!("layer.{layer}.{what}");
        let logits = b.linear(h, &self.router(d.naming, layer), None)?;
        let chosen = b.route(name("route"), logits, self.choice)?;
        let score = self.choice.score;
        let weights = b.route_weights(name("route.weights"), logits, chosen, score, self.renormalise)?;
        let slots = self.choice.top_k as usize;
        let grouped = |b: &mut Builder<'_>, x, which, part: &str| {
            let stack = b.stack(&name(part), &self.projection(d.naming, layer, which), self.count)?;
            b.experts_linear(name(part), x, chosen, stack, (self.count, slots))
        };
        let gate = grouped(b, h, 0, "experts.gate")?;
        let up = grouped(b, h, 1, "experts.up")?;
        let gate = b.unary(name("gate"), UnaryKind::from(d.gate), gate)?;
        let gated = b.binary(name("gated"), BinaryKind::Mul, gate, up)?;
        let down = grouped(b, gated, 2, "experts.down")?;
        b.combine(name("experts"), down, weights)
    }
}
