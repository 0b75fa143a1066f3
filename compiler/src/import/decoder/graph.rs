//! The graph of a decoder.

use super::{Decoder, Layer, Role};
use crate::import::build::{Attention, Builder, Model};
use crate::import::error::ImportError;
use crate::import::source::Checkpoint;
use bessemer_format::plan::{Input, ModelFacts, Output};
use bessemer_ir::Value;
use bessemer_ir::attr::{BinaryKind, UnaryKind};

/// A decoder whose graph is being built.
pub(super) struct Blocks<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) b: Builder<'a>,
    positions: Value,
    /// Tokens of the longest sequence.
    context: usize,
    /// Cosines and sines of the ropes that some layer has asked for.
    angles: Vec<Option<Value>>,
    pub(super) states: Vec<Value>,
}

impl Decoder {
    pub(super) fn graph(
        &self,
        checkpoint: &Checkpoint,
        asked: Option<usize>,
        architecture: &'static str,
    ) -> Result<Model, ImportError> {
        let served = self.ropes.iter().map(|rope| rope.context(self.context, asked)).min();
        let context = served.unwrap_or_else(|| asked.map_or(self.context, |asked| asked.min(self.context)));
        let mut b = Builder::new(checkpoint);
        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let logit_rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&self.tensor_name(Role::TokenEmbedding, 0))?;
        let angles = vec![None; self.ropes.len()];
        let mut blocks = Blocks { decoder: self, b, positions, context, angles, states: Vec::new() };
        // Before the blocks, as its name tells nothing of the layer that asks first.
        if let Some(rope) = self.layers.get(0).rope {
            blocks.angles(rope)?;
        }
        let mut x = blocks.b.embed(tokens, table)?;
        x = blocks.scaled("embed.scale".into(), x, self.embedding_scale)?;
        for i in 0..self.layers.count {
            let added = blocks.attention(i, self.layers.get(i), x)?;
            x = blocks.residual(i, "attention", Role::AttentionOutNorm, x, added)?;
            let added = blocks.feed_forward(i, x)?;
            x = blocks.residual(i, "ffn", Role::FfnOutNorm, x, added)?;
        }
        let Blocks { mut b, states, .. } = blocks;
        let x = b.select_rows(x, logit_rows)?;
        let name = self.tensor_name(Role::OutputNorm, 0);
        let x = b.rms_norm(x, &name, self.rms_norm_eps, self.norm_offset)?;
        let head = self.tensor_name(Role::Output, 0);
        let mut logits =
            if self.tied { b.linear_value(x, table, &head, None)? } else { b.linear(x, &head, None)? };
        if self.logit_scale != 1.0 {
            logits = b.unary("logits.scale".into(), UnaryKind::Scale(self.logit_scale as f32), logits)?;
        }
        if let Some(cap) = self.logit_softcap {
            let ratio = b.unary("logits.ratio".into(), UnaryKind::Scale((1.0 / cap) as f32), logits)?;
            let tanh = b.unary("logits.tanh".into(), UnaryKind::Tanh, ratio)?;
            logits = b.unary("logits.capped".into(), UnaryKind::Scale(cap as f32), tanh)?;
        }
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: context as u32,
            hidden: self.hidden as u32,
            layers: self.layers.count as u32,
            output: Output::Logits,
            whole: false,
        };
        Ok(Model { graph: b.finish(logits, &states)?, facts, architecture })
    }
}

impl Blocks<'_> {
    pub(super) fn angles(&mut self, rope: usize) -> Result<Value, ImportError> {
        if let Some(angles) = self.angles[rope] {
            return Ok(angles);
        }
        let name = if rope == 0 { "rope".to_owned() } else { format!("rope.{rope}") };
        let angles = self.b.rope_table(name, self.positions, &self.decoder.ropes[rope], self.context)?;
        self.angles[rope] = Some(angles);
        Ok(angles)
    }

    fn scaled(&mut self, name: String, x: Value, factor: f64) -> Result<Value, ImportError> {
        if factor == 1.0 { Ok(x) } else { self.b.unary(name, UnaryKind::Scale(factor as f32), x) }
    }

    /// The norm of a role, where the model has it.
    fn norm(&mut self, layer: usize, role: Role, x: Value) -> Result<Value, ImportError> {
        let d = self.decoder;
        if !d.has(role, layer) {
            return Ok(x);
        }
        self.b.rms_norm(x, &d.tensor_name(role, layer), d.rms_norm_eps, d.norm_offset)
    }

    fn project(&mut self, layer: usize, role: Role, x: Value) -> Result<Value, ImportError> {
        let (weight, bias) = (self.decoder.tensor_name(role, layer), self.decoder.bias_name(role, layer));
        self.b.linear(x, &weight, bias.as_deref())
    }

    /// Projections that may be parts of one tensor: each is `part` rows, in the order of `roles`.
    fn parts<const N: usize>(
        &mut self,
        layer: usize,
        joint: Role,
        roles: [(Role, &str, usize); N],
        x: Value,
    ) -> Result<[Value; N], ImportError> {
        let d = self.decoder;
        let (weight, bias) = (d.tensor_name(joint, layer), d.bias_name(joint, layer));
        let mut out = [x; N];
        let mut first = 0;
        for (out, (role, part, rows)) in out.iter_mut().zip(roles) {
            *out = match d.has(joint, layer) {
                true => self.b.linear_rows(x, &weight, bias.as_deref(), part, first..first + rows)?,
                false => self.project(layer, role, x)?,
            };
            first += rows;
        }
        Ok(out)
    }

    fn attention(&mut self, layer: usize, how: Layer, x: Value) -> Result<Value, ImportError> {
        let d = self.decoder;
        let name = |what: &str| format!("layer.{layer}.{what}");
        let h = self.norm(layer, Role::AttentionNorm, x)?;
        if let Some(conv) = d.conv_of(layer) {
            return self.short_conv(conv, layer, h);
        }
        if let Some(latent) = &d.latent {
            let a = self.latent_attention(latent, layer, how.rope.unwrap_or(0), h)?;
            return self.project(layer, Role::AttentionOut, a);
        }
        let (q_rows, kv_rows) = (d.q_rows(), d.kv_rows());
        let roles = [(Role::Query, "q", q_rows), (Role::Key, "k", kv_rows), (Role::Value, "v", kv_rows)];
        let [q, k, v] = self.parts(layer, Role::JointQkv, roles, h)?;
        let mut q = self.norm(layer, Role::QueryNorm, q)?;
        let mut k = self.norm(layer, Role::KeyNorm, k)?;
        if let Some(rope) = how.rope {
            let angles = self.angles(rope)?;
            let rope = &d.ropes[rope];
            q = self.b.rope(name("q.rope"), q, angles, d.heads, rope)?;
            k = self.b.rope(name("k.rope"), k, angles, d.kv_heads, rope)?;
        }
        let state = self.b.state(layer, d.kv_heads, d.head_dim)?;
        let state = self.b.append(name("append"), state, k, v, d.kv_heads)?;
        self.states.push(state);
        let shape = Attention {
            heads: d.heads,
            kv_heads: d.kv_heads,
            scale: d.attention_scale,
            window: how.window.filter(|window| *window < self.context),
            softcap: d.attention_softcap,
            sinks: match d.has(Role::Sinks, layer) {
                true => Some(self.b.weight(&d.tensor_name(Role::Sinks, layer))?),
                false => None,
            },
        };
        let a = self.b.attention(name("attention"), q, state, shape)?;
        self.project(layer, Role::AttentionOut, a)
    }

    fn feed_forward(&mut self, layer: usize, x: Value) -> Result<Value, ImportError> {
        let d = self.decoder;
        let name = |what: &str| format!("layer.{layer}.{what}");
        let h = self.norm(layer, Role::FfnNorm, x)?;
        if let Some(experts) = d.experts_of(layer) {
            return experts.build(&mut self.b, d, layer, h);
        }
        let roles = [(Role::Gate, "gate", d.ffn), (Role::Up, "up", d.ffn)];
        let [gate, up] = self.parts(layer, Role::JointGateUp, roles, h)?;
        let gate = self.b.unary(name("gate"), UnaryKind::from(d.gate), gate)?;
        let h = self.b.binary(name("gated"), BinaryKind::Mul, gate, up)?;
        self.project(layer, Role::Down, h)
    }

    /// Adds what half a block computed to the stream.
    fn residual(
        &mut self,
        layer: usize,
        half: &str,
        norm: Role,
        x: Value,
        added: Value,
    ) -> Result<Value, ImportError> {
        let added = self.norm(layer, norm, added)?;
        let added = self.scaled(format!("layer.{layer}.{half}.scale"), added, self.decoder.residual_scale)?;
        self.b.binary(format!("layer.{layer}.{half}.residual"), BinaryKind::Add, x, added)
    }
}
