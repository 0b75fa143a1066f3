//! Tactics: constants of the schedule that change how fast an engine is, never what it computes to which precision.
//!
//! Each has a default by a rule that looks at shapes alone, so that the bytes of an engine depend on nothing of the machine that
//! compiles it. What was measured on a machine may override the rule.

use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::manifest::TacticReport;
use bessemer_format::{Compute, PanelLayout, kv};
use bessemer_ir::attr::Attr;
use bessemer_ir::{Dim, Graph, NodeId, Op};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A constant of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tactic {
    /// Tokens whose keys one online softmax goes through before its result is merged. It fixes the order in which partial results
    /// are added: engines that differ in it differ in the last bits, none being more precise.
    AttentionChunk,
    /// Most rows of a forward pass: longer prompts run in chunks of so many. Changes no bit of a result.
    ChunkRows,
    /// Most rows for which attention splits a row over chunks of the context: above it rows alone keep threads busy. Changes no
    /// bit of a result.
    SplitRows,
}

impl Tactic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::AttentionChunk, Self::ChunkRows, Self::SplitRows];

    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttentionChunk => "attention_chunk",
            Self::ChunkRows => "chunk_rows",
            Self::SplitRows => "split_rows",
        }
    }

    /// Whether a plan can have this value.
    pub fn check(self, value: u32) -> Result<(), String> {
        let (allowed, step) = match self {
            Self::AttentionChunk => (kv::TOKENS as u32..=65536, kv::TOKENS as u32),
            Self::ChunkRows => (1..=1 << 20, 1),
            Self::SplitRows => (1..=64, 1),
        };
        if allowed.contains(&value) && value.is_multiple_of(step) {
            return Ok(());
        }
        let step = if step > 1 { format!(" in steps of {step}") } else { String::new() };
        Err(format!("{self} is {value}; it may be {} to {}{step}", allowed.start(), allowed.end()))
    }
}

impl fmt::Display for Tactic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tactic {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|t| t.name() == s);
        found.ok_or_else(|| format!("`{s}` is no tactic; tactics: {}", names()))
    }
}

/// A value for a tactic, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The value.
    pub value: u32,
    /// Why it was chosen, for people.
    pub why: String,
}

/// A choice for every tactic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tactics(BTreeMap<Tactic, Setting>);

impl Tactics {
    /// What the rule gives for a graph of phase `Packed`, with `chosen` in place of the rule where it says something.
    /// `whole` is the context of a model that takes texts as a whole.
    pub fn new(
        graph: &Graph,
        whole: Option<u32>,
        chosen: &BTreeMap<Tactic, Setting>,
    ) -> Result<Self, String> {
        let mut all: BTreeMap<_, _> = Tactic::ALL.into_iter().map(|t| (t, rule(t, graph, whole))).collect();
        all.extend(chosen.iter().map(|(t, c)| (*t, c.clone())));
        all.iter().try_for_each(|(t, c)| t.check(c.value))?;
        let rows = all[&Tactic::ChunkRows].value;
        if let Some(context) = whole.filter(|context| rows < *context) {
            return Err(format!(
                "{} is {rows}, and this model takes texts of up to {context} tokens as a whole; give at least {context}",
                Tactic::ChunkRows
            ));
        }
        Ok(Self(all))
    }

    /// The value of a tactic.
    pub fn get(&self, tactic: Tactic) -> u32 {
        self.0[&tactic].value
    }

    /// What the engine's report says about them.
    pub fn report(&self) -> Vec<TacticReport> {
        let report = |(t, c): (&Tactic, &Setting)| TacticReport {
            name: t.to_string(),
            value: c.value,
            why: c.why.clone(),
        };
        self.0.iter().map(report).collect()
    }
}

/// Bytes of L2 and of its share of L3 that a core is taken to have: the rule may not ask the machine. Rows that are read from there
/// keep up with the products that they go into, those from memory do not.
const CACHE_BYTES: usize = 16 << 20;
/// What the rule for [`Tactic::AttentionChunk`] chooses from: merging takes the less the longer chunks are.
const CHUNK_TOKENS: [u32; 3] = [512, 256, 128];
/// Key heads times chunks of 512 tokens that share out evenly among a few threads; many threads deal query heads out too.
const CHUNK_UNITS: u32 = 12;
/// What the rule for [`Tactic::ChunkRows`] chooses from. Every chunk reads all weights: with fewer rows a model larger than the
/// caches would wait for memory. With more nothing is gained, and activations take memory. Powers of two, as prompts are cut
/// into whole chunks and a rest, which reads all weights for few rows.
const CHUNK_ROWS: [usize; 3] = [512, 256, 128];

fn rule(tactic: Tactic, graph: &Graph, whole: Option<u32>) -> Setting {
    let (value, why) = match tactic {
        Tactic::AttentionChunk => {
            let heads = kv_heads(graph);
            let fits = |tokens: &u32| 512 / tokens * heads >= CHUNK_UNITS;
            let value = CHUNK_TOKENS.into_iter().find(fits).unwrap_or(CHUNK_TOKENS[2]);
            (value, format!("rule: {heads} key heads of 512 tokens are work enough for several threads"))
        }
        // A text that comes whole has to fit into a pass: no matter of speed.
        Tactic::ChunkRows if whole.is_some() => {
            let value = whole.unwrap_or(0).max(CHUNK_ROWS[0] as u32);
            (value, "rule: texts of the whole context fit into a pass".into())
        }
        Tactic::ChunkRows => {
            let row = widest_row(graph);
            let fits = |rows: usize| rows.saturating_mul(row) <= CACHE_BYTES;
            let value = CHUNK_ROWS.into_iter().find(|rows| fits(*rows)).unwrap_or(CHUNK_ROWS[2]);
            let why = format!(
                "rule: {value} rows of up to {row} bytes, which every panel of weights reads again, {} {} MiB of cache",
                if fits(value) { "stay in" } else { "do not stay in" },
                CACHE_BYTES >> 20
            );
            (value as u32, why)
        }
        // Units of eight rows and a KV head each are enough from about a whole unit of rows on.
        Tactic::SplitRows => (7, "rule: from 8 rows on rows alone keep threads busy".into()),
    };
    Setting { value, why }
}

/// Key heads of the attention that has the fewest; 1 where there is none.
fn kv_heads(graph: &Graph) -> u32 {
    let heads = graph.order().into_iter().filter_map(|node| match *graph.op(node) {
        Op::Attention { kv_heads, .. } | Op::FullAttention { kv_heads, .. } => Some(kv_heads),
        Op::LatentAttention { .. } => Some(1),
        _ => None,
    });
    heads.min().unwrap_or(1)
}

/// Bytes of the widest row that a linear over tokens reads, converted as its kernel wants it.
fn widest_row(graph: &Graph) -> usize {
    let linears = graph.order().into_iter().filter_map(|node| match graph.op(node) {
        Op::Linear { compute, .. } => Some((node, compute.at(u32::MAX), 1)),
        Op::GroupedLinear { compute, routed, .. } => {
            Some((node, compute.at(u32::MAX), 1 + usize::from(*routed)))
        }
        _ => None,
    });
    let rows = linears.filter_map(|(node, compute, first_weight)| {
        let operands = graph.operands(node);
        let (x, w) = (graph.ty(*operands.first()?), graph.ty(*operands.get(first_weight)?));
        if x.shape.first() != Some(&Dim::Rows) {
            return None;
        }
        let (n, k) = (w.const_dim(0)? as usize, w.const_dim(1)? as usize);
        Some(match compute {
            Compute::F32 => 4 * k,
            Compute::Bf16 => Bf16Layout { k }.row_bytes(),
            Compute::Int8 { group } => PanelLayout::new(&w.scheme(), n, k)
                .and_then(|panel| Int8Layout::new(&panel, group as usize))
                .map_or(4 * k, |layout| layout.row_bytes()),
        })
    });
    rows.max().unwrap_or(0)
}

/// What the graph computes without its names and numbers: operations on which types, and how often each. Models of equal shapes run
/// equally fast, so what was measured for one serves the other.
pub fn shapes(graph: &Graph) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in graph.order() {
        if !matches!(graph.op(node), Op::Const { .. } | Op::Input { .. } | Op::State { .. } | Op::Output {}) {
            *counts.entry(shape(graph, node)).or_default() += 1;
        }
    }
    counts.into_iter().map(|(shape, count)| format!("{count} x {shape}")).collect()
}

fn shape(graph: &Graph, node: NodeId) -> String {
    let op = graph.op(node);
    let mut out = op.name().to_string();
    match op {
        Op::Attention { .. } | Op::FullAttention { .. } => op.print_attrs(&mut out),
        Op::Linear { compute, .. } => {
            out.push(' ');
            compute.print(&mut out);
        }
        Op::GroupedLinear { groups, slots, compute, .. } => {
            out.push_str(&format!(" {slots} of {groups} "));
            compute.print(&mut out);
        }
        _ => {}
    }
    let operands: Vec<String> = graph.operands(node).iter().map(|v| graph.ty(*v).to_string()).collect();
    let results: Vec<String> = graph.types(node).iter().map(ToString::to_string).collect();
    format!("{out} ({}) -> {}", operands.join(", "), results.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_borders_are_checked() {
        for tactic in Tactic::ALL {
            assert_eq!(tactic.name().parse(), Ok(tactic));
        }
        let error = "chunk".parse::<Tactic>().unwrap_err();
        assert!(error.contains("attention_chunk, chunk_rows, split_rows"), "{error}");
        for (tactic, good, bad) in [
            (Tactic::AttentionChunk, [32, 65536], [0, 48]),
            (Tactic::ChunkRows, [1, 1 << 20], [0, (1 << 20) + 1]),
            (Tactic::SplitRows, [1, 64], [0, 65]),
        ] {
            for value in good {
                tactic.check(value).unwrap();
            }
            for value in bad {
                assert!(tactic.check(value).unwrap_err().contains(tactic.name()));
            }
        }
    }

    fn one_linear(k: u64) -> Graph {
        let text = format!(
            "graph packed\n\
             %0 \"tokens\" = input {{input=tokens}} : i32[R]\n\
             %1 \"table\" = const {{recipe=random 1 0.5 [32, {k}]}} : f32[32, {k}] panel\n\
             %2 \"x\" = embed %0, %1 : f32[R, {k}]\n\
             %3 \"w\" = const {{recipe=random 2 0.5 [16, {k}]}} : f32[16, {k}] panel\n\
             %4 \"y\" = linear %2, %3 {{segments=[\"y\":16], epilogue=none, compute=f32}} : f32[R, 16]\n\
             %5 \"rows\" = input {{input=logit_rows}} : i32[L]\n\
             %6 \"last\" = select_rows %4, %5 : f32[L, 16]\n\
             %7 \"out\" = output %6\n"
        );
        bessemer_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    #[test]
    fn chunks_shrink_where_rows_are_wide_and_a_choice_beats_the_rule() {
        let rows = |k, chosen: &BTreeMap<_, _>| {
            Tactics::new(&one_linear(k), None, chosen).unwrap().get(Tactic::ChunkRows)
        };
        let none = BTreeMap::new();
        // 512 rows of 32 KB are 16 MiB; of 256 KB only 64 would fit, fewer than the rule takes.
        assert_eq!([8192, 8193, 65536].map(|k| rows(k, &none)), [512, 256, 128]);
        let chosen = BTreeMap::from([(Tactic::ChunkRows, Setting { value: 96, why: "asked".into() })]);
        assert_eq!(rows(512, &chosen), 96);
        let whole = |context| Tactics::new(&one_linear(32768), Some(context), &none).unwrap();
        assert_eq!([128, 8192].map(|context| whole(context).get(Tactic::ChunkRows)), [512, 8192]);
        let error = Tactics::new(&one_linear(512), Some(128), &chosen).unwrap_err();
        assert!(error.contains("chunk_rows is 96") && error.contains("at least 128"), "{error}");
        let wrong = BTreeMap::from([(Tactic::AttentionChunk, Setting { value: 100, why: "asked".into() })]);
        assert!(Tactics::new(&one_linear(512), None, &wrong).unwrap_err().contains("attention_chunk is 100"));
    }

    #[test]
    fn shapes_know_sizes_and_no_names() {
        let graph = one_linear(64);
        assert_eq!(
            shapes(&graph),
            [
                "1 x embed (i32[R], f32[32, 64] panel) -> f32[R, 64]",
                "1 x linear f32 (f32[R, 64], f32[16, 64] panel) -> f32[R, 16]",
                "1 x select_rows (f32[R, 16], i32[L]) -> f32[L, 16]",
            ]
        );
        assert_ne!(shapes(&graph), shapes(&one_linear(128)));
    }
}
