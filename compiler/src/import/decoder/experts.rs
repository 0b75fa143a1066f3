//! Mixtures of experts in place of the feed-forward network.

use super::{Decoder, Naming};
use crate::import::build::Builder;
use crate::import::config::{Fields, Harmless};
use crate::import::error::ImportError;
use bessemer_format::plan::{Choice, Score};
use bessemer_ir::Value;
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use bessemer_ir::recipe::{Part, Piece};

/// A mixture of experts in blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// Width of an expert.
    pub ffn: usize,
    /// The first block that has them; those before it have a plain network.
    pub first_layer: usize,
    /// How a token's experts are chosen.
    pub choice: Choice,
    /// Whether a bias is added to the scores when experts are chosen (and not when they are weighed).
    pub corrected: bool,
    /// Whether the weights of a token's experts add up to 1, before they are scaled.
    pub renormalise: bool,
    /// Factor of the weights.
    pub scale: f64,
    /// Whether the router and all projections have a bias.
    pub biases: bool,
    /// What stands in place of the plain gate, where something does.
    pub clamped: Option<ClampedGate>,
    /// Width of a network that all tokens take beside their experts; 0 where there is none.
    pub shared: usize,
    /// What they are called in Hugging Face.
    pub names: ExpertNames,
    /// Whether joint tensors are stored transposed.
    pub transposed: bool,
}

/// `g sigmoid(slope g) (u + 1)`, with `g = min(gate, limit)` and `u` the up projection, held between `-limit` and `limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedGate {
    /// Bound of both.
    pub limit: f64,
    /// How steep the sigmoid is.
    pub slope: f64,
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
    /// Whether one tensor holds a projection of all experts, with rows of gate and up that alternate in one.
    pub joint: bool,
}

/// Most experts of a block: what an engine's plan can hold.
const MOST_EXPERTS: usize = 4096;
/// The network that all tokens take: its projections in Hugging Face and in GGUF.
const SHARED: [(&str, &str); 3] = [
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

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
        Ok(Self {
            count,
            ffn,
            first_layer: 0,
            choice,
            corrected: false,
            renormalise,
            scale: 1.0,
            biases: false,
            clamped: None,
            shared: 0,
            names,
            transposed: false,
        })
    }

    /// What stands below a block's number.
    fn below(naming: Naming, layer: usize, hf: &str, gguf: &str) -> String {
        match naming {
            Naming::HuggingFace => format!("model.layers.{layer}.{hf}"),
            Naming::Gguf => format!("blk.{layer}.{gguf}"),
        }
    }

    /// Name of a tensor of the router.
    fn router(&self, naming: Naming, layer: usize, kind: &str) -> String {
        Self::below(naming, layer, self.names.router, "ffn_gate_inp") + kind
    }

    /// Name of what is added to the scores when experts are chosen.
    fn correction(&self, naming: Naming, layer: usize) -> String {
        let hf = format!("{}.e_score_correction_bias", self.names.router);
        Self::below(naming, layer, &hf, "exp_probs_b.bias")
    }

    /// Names of the tensors of a projection: one an expert, or one of all.
    fn projection(&self, naming: Naming, layer: usize, which: usize) -> Vec<String> {
        let ExpertNames { experts, projections, joint, .. } = self.names;
        let name = projections[which];
        match naming {
            Naming::HuggingFace if joint => vec![format!("model.layers.{layer}.{experts}.{name}")],
            Naming::HuggingFace => {
                (0..self.count).map(|e| format!("model.layers.{layer}.{experts}.{e}.{name}.weight")).collect()
            }
            Naming::Gguf => vec![format!("blk.{layer}.ffn_{}_exps.weight", ["gate", "up", "down"][which])],
        }
    }

    /// Name of the biases of a projection of all experts.
    fn bias(&self, naming: Naming, layer: usize, which: usize) -> String {
        let name = self.projection(naming, layer, which).swap_remove(0);
        match naming {
            Naming::HuggingFace => name + "_bias",
            Naming::Gguf => name.replace(".weight", ".bias"),
        }
    }

    /// The tensors of a block with their shapes.
    pub(super) fn tensors(
        &self,
        hidden: usize,
        naming: Naming,
        layer: usize,
    ) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (count, ffn) = (self.count, self.ffn);
        let alternate = self.names.joint && naming == Naming::HuggingFace;
        let mut router = vec![(self.router(naming, layer, ".weight"), vec![count, hidden])];
        if self.biases {
            router.push((self.router(naming, layer, ".bias"), vec![count]));
        }
        if self.corrected {
            router.push((self.correction(naming, layer), vec![count]));
        }
        // Where rows of gate and up alternate, the second has no tensor of its own.
        let stacks = (0..3).filter(move |which| !(alternate && *which == 1)).flat_map(move |which| {
            let (n, k) = match which {
                2 => (hidden, ffn),
                _ => (if alternate { 2 * ffn } else { ffn }, hidden),
            };
            let mut shape = if self.transposed { vec![k, n] } else { vec![n, k] };
            if alternate || naming == Naming::Gguf {
                shape.insert(0, count);
            }
            let weights = self.projection(naming, layer, which).into_iter().map(move |n| (n, shape.clone()));
            let bias = self.biases.then(|| (self.bias(naming, layer, which), vec![count, n]));
            weights.chain(bias)
        });
        let shared = SHARED.iter().enumerate().filter(|_| self.shared > 0).map(move |(which, (hf, gguf))| {
            let shape = if which == 2 { vec![hidden, self.shared] } else { vec![self.shared, hidden] };
            (Self::below(naming, layer, hf, gguf) + ".weight", shape)
        });
        router.into_iter().chain(stacks).chain(shared)
    }

    /// The weights of a projection below each other, and their biases.
    fn stack(
        &self,
        b: &mut Builder<'_>,
        d: &Decoder,
        layer: usize,
        which: usize,
        name: &str,
    ) -> Result<(Value, Option<Value>), ImportError> {
        let names = self.projection(d.naming, layer, which);
        let (count, ffn, hidden) = (self.count as u64, self.ffn as u64, d.hidden as u64);
        let (n, k) = if which == 2 { (hidden, ffn) } else { (ffn, hidden) };
        let alternate = self.names.joint && d.naming == Naming::HuggingFace && which < 2;
        let (first, stride) = if alternate { (which as u64, 2) } else { (0, 1) };
        let weights = if self.transposed {
            // Of each expert k rows of n (or 2 n) elements: a column of them is a row of the weight.
            let width = n * stride;
            let part = |e: u64| Part::Columns { first: e * k * width + first, block: 1, stride, width };
            let piece = |e| Piece { name: names[0].clone(), part: part(e) };
            b.pieces(name, (0..count).map(piece).collect(), [count * n, k])?
        } else if alternate {
            let part = Part::Rows { first, block: 1, stride };
            b.part(name, part, &[(count * n) as usize, k as usize], &names[0])?
        } else {
            b.stack(name, &names, self.count)?
        };
        let bias = match self.biases {
            false => None,
            true => {
                let part = if alternate { Part::Rows { first, block: 1, stride } } else { Part::Whole };
                let of = self.bias(d.naming, layer, which);
                Some(b.part(&format!("{name}.bias"), part, &[(count * n) as usize], &of)?)
            }
        };
        Ok((weights, bias))
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
        let bias = self.biases.then(|| self.router(d.naming, layer, ".bias"));
        let logits = b.linear(h, &self.router(d.naming, layer, ".weight"), bias.as_deref())?;
        let correction = self.corrected.then(|| b.weight(&self.correction(d.naming, layer))).transpose()?;
        let chosen = b.route(name("route"), logits, correction, self.choice)?;
        let weighing = (self.choice.score, self.renormalise, self.scale as f32);
        let weights = b.route_weights(name("route.weights"), logits, chosen, weighing)?;
        let slots = self.choice.top_k as usize;
        let grouped = |b: &mut Builder<'_>, x, which, part: &str| {
            let stack = self.stack(b, d, layer, which, &name(part))?;
            b.experts_linear(name(part), x, chosen, stack, (self.count, slots))
        };
        let gate = grouped(b, h, 0, "experts.gate")?;
        let up = grouped(b, h, 1, "experts.up")?;
        let (gate, up) = match self.clamped {
            None => (b.unary(name("gate"), UnaryKind::from(d.gate), gate)?, up),
            Some(clamped) => clamped.build(b, layer, gate, up)?,
        };
        let gated = b.binary(name("gated"), BinaryKind::Mul, gate, up)?;
        let down = grouped(b, gated, 2, "experts.down")?;
        let y = b.combine(name("experts"), down, weights)?;
        if self.shared == 0 {
            return Ok(y);
        }
        let [gate, up, down] = SHARED.map(|(hf, gguf)| Self::below(d.naming, layer, hf, gguf) + ".weight");
        let (gate, up) = (b.linear(h, &gate, None)?, b.linear(h, &up, None)?);
        let gate = b.unary(name("shared.gate"), UnaryKind::from(d.gate), gate)?;
        let gated = b.binary(name("shared.gated"), BinaryKind::Mul, gate, up)?;
        let shared = b.linear(gated, &down, None)?;
        b.binary(name("shared"), BinaryKind::Add, y, shared)
    }
}

impl ClampedGate {
    /// The two factors. `g sigmoid(a g)` is `silu(a g) / a`.
    fn build(
        self,
        b: &mut Builder<'_>,
        layer: usize,
        gate: Value,
        up: Value,
    ) -> Result<(Value, Value), ImportError> {
        let (limit, slope) = (self.limit as f32, self.slope as f32);
        let steps = [
            ("gate.clamped", UnaryKind::Clamp(f32::NEG_INFINITY, limit)),
            ("gate.steep", UnaryKind::Scale(slope)),
            ("gate.silu", UnaryKind::Silu),
            ("gate", UnaryKind::Scale((1.0 / self.slope) as f32)),
        ];
        let of_up = [("up.clamped", UnaryKind::Clamp(-limit, limit)), ("up.plus", UnaryKind::Plus(1.0))];
        let mut chain = |x, steps: &[(&str, UnaryKind)]| {
            steps.iter().try_fold(x, |x, (what, kind)| b.unary(format!("layer.{layer}.{what}"), *kind, x))
        };
        Ok((chain(gate, &steps)?, chain(up, &of_up)?))
    }
}
