//! Where the time of a token goes: the steps of a program, and the barriers between them.

use super::ceilings::{Ceilings, MultiplyAdds};
use crate::exit::Failure;
use crate::output::out;
use bessemer_format::kv;
use bessemer_format::plan::{Attention, Linear, Plan, RowCount, StepKind};
use bessemer_runtime::{KvElem, Profile};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The passes of one phase.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// Token rows of a pass.
    pub rows: usize,
    /// Passes that were measured.
    pub passes: u64,
    /// Microseconds of a pass that its steps account for.
    pub pass_us: f64,
    /// Microseconds of a pass between one and the next: inputs, waking the threads, giving back logits.
    pub outside_us: f64,
    /// The program's steps in their order.
    pub steps: Vec<StepCost>,
}

/// One step, or several of one kind, on the average pass.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepCost {
    /// The node it came from; `*` stands for numbers where steps are summed.
    pub node: String,
    /// `embed`, `linear`, `attention` or `nest`.
    pub kind: &'static str,
    /// Steps summed.
    pub count: usize,
    /// Microseconds of a thread, barriers included: the mean of all threads, so that steps add up to the pass.
    pub us: f64,
    /// Of which it waited for others.
    pub waiting_us: f64,
    /// Bytes of weights and KV that are read.
    pub bytes: u64,
    /// Multiply-adds.
    pub multiply_adds: u64,
    /// Larger one of the shares of measured bandwidth and of measured arithmetic, where these were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_ceiling: Option<f64>,
    /// The same, by what is multiplied.
    #[serde(skip)]
    by_type: MultiplyAdds,
}

/// What is known about the passes that were measured.
#[derive(Clone, Copy)]
pub struct Passes {
    /// Token rows, of all sequences.
    pub rows: usize,
    /// Tokens that a row sees, on average.
    pub visible: usize,
    /// Sequences: their rows share what they read.
    pub sequences: usize,
    /// Rows whose logits are wanted.
    pub logits: usize,
    /// Wall time of all passes.
    pub wall: Duration,
}

impl Phase {
    /// Reads `profile`, which holds passes of the program for `of.rows` rows.
    pub fn new(
        plan: &Plan,
        profile: &Profile,
        kv: KvElem,
        of: Passes,
        ceilings: Option<&Ceilings>,
    ) -> Option<Self> {
        let serves = |p: &bessemer_format::plan::Program| of.rows <= p.regime.max_rows as usize;
        let index = plan.programs.iter().position(serves)?;
        let passes = profile.passes(index);
        let us = |d: Duration| d.as_secs_f64() * 1e6 / passes.max(1) as f64;
        let mut steps = Vec::new();
        for (step, threads) in plan.programs[index].steps.iter().zip(profile.steps(index)) {
            let mut cost = StepCost { node: step.source.clone(), count: 1, ..StepCost::default() };
            cost.us = threads.iter().map(|t| us(t.busy + t.waiting)).fold(0.0, f64::max);
            cost.waiting_us =
                threads.iter().map(|t| us(t.waiting)).sum::<f64>() / threads.len().max(1) as f64;
            match &step.kind {
                StepKind::Embed { .. } => cost.kind = "embed",
                StepKind::Linear(linear) => cost.linear(plan, linear, 1.0, of),
                StepKind::GroupedLinear(g) => {
                    let share = f64::from(g.slots) / f64::from(g.groups.max(1));
                    cost.linear(plan, &g.linear, share, of);
                }
                StepKind::Route(_) => cost.kind = "route",
                StepKind::Attention(attention) => cost.attention(attention, kv, of),
                _ => cost.kind = "nest",
            }
            cost.rate(ceilings);
            steps.push(cost);
        }
        let pass_us = steps.iter().map(|s| s.us).sum();
        Some(Self { rows: of.rows, passes, pass_us, outside_us: us(of.wall) - pass_us, steps })
    }

    /// The steps summed over layers: those whose names differ in numbers only. In the order of their first.
    pub fn by_role(&self, ceilings: Option<&Ceilings>) -> Vec<StepCost> {
        let mut place = BTreeMap::new();
        let mut roles: Vec<StepCost> = Vec::new();
        for step in &self.steps {
            let node = without_numbers(&step.node);
            let at = *place.entry((node.clone(), step.kind)).or_insert(roles.len());
            if at == roles.len() {
                roles.push(StepCost { node, kind: step.kind, ..StepCost::default() });
            }
            let role = &mut roles[at];
            role.count += 1;
            role.us += step.us;
            role.waiting_us += step.waiting_us;
            role.bytes += step.bytes;
            role.multiply_adds += step.multiply_adds;
            role.by_type += step.by_type;
        }
        roles.iter_mut().for_each(|r| r.rate(ceilings));
        roles
    }

    /// A table for people.
    pub fn print(&self, name: &str, ceilings: Option<&Ceilings>) -> Result<(), Failure> {
        out!(
            "\n{name}, {} row(s): {:.0} us a pass in steps, {:.0} us outside, mean of {} passes\n",
            self.rows,
            self.pass_us,
            self.outside_us,
            self.passes
        )?;
        out!(
            "| step | kind | count | us | % | waiting us | MB | GB/s | G multiply-adds/s | share of ceiling |"
        )?;
        out!("|---|---|---|---|---|---|---|---|---|---|")?;
        for r in self.by_role(ceilings) {
            let share = r.share_of_ceiling.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share));
            out!(
                "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} | {:.0} | {share} |",
                r.node,
                r.kind,
                r.count,
                r.us,
                100.0 * r.us / self.pass_us,
                r.waiting_us,
                r.bytes as f64 / 1e6,
                r.bytes as f64 / 1e3 / r.us,
                r.multiply_adds as f64 / 1e3 / r.us
            )?;
        }
        Ok(())
    }
}

impl StepCost {
    /// `taken`: the share of its weights that a row takes. Rows are assumed to take different ones, until all are taken.
    fn linear(&mut self, plan: &Plan, linear: &Linear, taken: f64, of: Passes) {
        self.kind = "linear";
        let rows = if linear.rows == RowCount::Tokens { of.rows } else { of.logits };
        for weight in linear.segments.iter().filter_map(|s| plan.weights.get(s.weight as usize)) {
            let elements = u64::from(weight.n) * u64::from(weight.k);
            self.bytes +=
                (weight.len as f64 * (rows as f64 * taken).min(f64::from(u8::from(rows > 0)))) as u64;
            self.by_type.add(linear.compute, (rows as f64 * taken * elements as f64) as u64);
        }
        self.multiply_adds = self.by_type.total();
    }

    fn attention(&mut self, a: &Attention, kv: KvElem, of: Passes) {
        self.kind = "attention";
        let parts = if a.latent.is_some() { 1 } else { 2 };
        let block = parts * u64::from(a.kv_heads) * kv::head_bytes(kv, a.head_dim as usize) as u64;
        self.bytes = block * (of.visible.div_ceil(kv::TOKENS) * of.sequences) as u64;
        let products = 2 * u64::from(a.heads) * u64::from(a.head_dim) * (of.rows * of.visible) as u64;
        self.by_type.add(a.compute, products);
        self.multiply_adds = self.by_type.total();
    }

    fn rate(&mut self, ceilings: Option<&Ceilings>) {
        self.share_of_ceiling = ceilings.map(|c| {
            let arithmetic = self.by_type.seconds(c);
            let reading = self.bytes as f64 / c.read_bytes_s;
            if self.us > 0.0 { arithmetic.max(reading) * 1e6 / self.us } else { 0.0 }
        });
    }
}

fn without_numbers(name: &str) -> String {
    let parts = name.split('.').map(|part| match part.parse::<u32>() {
        Ok(_) => "*",
        Err(_) => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_all_layers_are_one_role() {
        let step = |node: &str, us| StepCost {
            node: node.into(),
            kind: "linear",
            count: 1,
            us,
            ..StepCost::default()
        };
        let steps = vec![step("a.0.up", 1.0), step("a.0.down", 2.0), step("a.11.up", 4.0), step("head", 8.0)];
        let phase = Phase { rows: 1, passes: 1, pass_us: 15.0, outside_us: 0.0, steps };
        let roles = phase.by_role(None);
        let found: Vec<_> = roles.iter().map(|r| (r.node.as_str(), r.count, r.us)).collect();
        assert_eq!(found, [("a.*.up", 2, 5.0), ("a.*.down", 1, 2.0), ("head", 1, 8.0)]);
    }
}
