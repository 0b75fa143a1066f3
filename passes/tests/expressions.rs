//! Passes keep the expression that a graph is, to the last bit of its constants.
//!
//! A graph is written out as one expression over plain ops: fused ops as the plain ops of which the op table says they are made,
//! constants as their numbers. Equal expressions compute equal numbers whatever an op computes, so this holds `BitExact` passes to their
//! word without computing. Additions and products may swap their operands, and nothing else may move.

mod soup;

use bessemer_format::rows::Rows;
use bessemer_ir::attr::{BinaryKind, Epilogue, Scalar, UnaryKind};
use bessemer_ir::recipe::{NoSource, quantise};
use bessemer_ir::{Graph, Layout, NodeId, Op, Value};
use bessemer_passes::PrecisionPolicy;
use bessemer_passes::pipeline::{Context, Effect, Options, PASSES, Refine, apply, run};
use bessemer_passes::testing::TestTarget;
use std::collections::BTreeMap;

const TARGET: TestTarget = TestTarget { integers: true, layout: Layout::Panel, tiles: false };

/// A plain op with its attributes, or the numbers of a constant, over other terms.
type Term = (String, Vec<u32>, Vec<usize>);

/// All terms so far; a term's number stands for it, so equal numbers are equal expressions.
#[derive(Default)]
struct Terms(BTreeMap<Term, usize>, Vec<Term>);

/// Columns of a value: neighbouring terms and their widths.
type Columns = Vec<(u64, usize)>;

impl Terms {
    fn intern(&mut self, term: Term) -> usize {
        let next = self.1.len();
        *self.0.entry(term).or_insert_with_key(|term| {
            self.1.push(term.clone());
            next
        })
    }

    fn node(&mut self, op: &Op, operands: Vec<usize>) -> usize {
        let mut text = op.name().to_string();
        op.print_attrs(&mut text);
        self.intern((text, Vec::new(), operands))
    }

    fn unary(&mut self, kind: UnaryKind, a: usize) -> usize {
        let op = Op::Unary { kind };
        let mut text = op.name().to_string();
        op.print_attrs(&mut text);
        match &self.1[a] {
            (name, _, inner) if kind == UnaryKind::Neg && *name == text => inner[0],
            _ => self.node(&op, vec![a]),
        }
    }

    fn binary(&mut self, kind: BinaryKind, a: usize, b: usize) -> usize {
        self.node(&Op::Binary { kind }, vec![a.min(b), a.max(b)])
    }

    fn whole(&mut self, columns: &Columns) -> usize {
        match columns[..] {
            [(_, term)] => term,
            _ => {
                let widths = columns.iter().map(|(w, _)| *w as u32).collect();
                self.intern(("columns".into(), widths, columns.iter().map(|(_, t)| *t).collect()))
            }
        }
    }
}

/// Takes the first `width` columns, which must be whole terms.
fn take(columns: &mut &[(u64, usize)], width: u64) -> Columns {
    let count = (1..=columns.len()).find(|n| columns[..*n].iter().map(|(w, _)| w).sum::<u64>() == width);
    let (head, tail) = columns.split_at(count.expect("a part begins and ends with a segment"));
    *columns = tail;
    head.to_vec()
}

/// The expressions of the operands of `output`. `numbers` says which numbers a constant stands for.
fn expressions(graph: &Graph, terms: &mut Terms, numbers: impl Fn(NodeId, Rows) -> Vec<f32>) -> Vec<usize> {
    let mut values: BTreeMap<Value, Columns> = BTreeMap::new();
    for node in graph.order() {
        let operands = graph.operands(node);
        let parts = |i: usize| &values[&operands[i]];
        let all: Vec<usize> = operands.iter().map(|v| terms.whole(&values[v])).collect();
        let width = |i: u16| graph.types(node)[usize::from(i)].const_dim(1).unwrap_or(0);
        let results: Vec<Columns> = match graph.op(node) {
            Op::Output {} => return all,
            Op::Const { recipe } => {
                let rows = recipe.rows(&NoSource, 0..recipe.matrix().0).unwrap();
                let mut bits: Vec<u32> = recipe.shape.iter().map(|d| *d as u32).collect();
                bits.extend(numbers(node, rows).iter().map(|v| v.to_bits()));
                vec![vec![(width(0), terms.intern(("const".into(), bits, Vec::new())))]]
            }
            Op::Linear { segments, epilogue, .. } => {
                let mut next = 1;
                let mut columns = Columns::new();
                for s in segments {
                    let mut term = terms.intern(("linear".into(), Vec::new(), vec![all[0], all[next]]));
                    next += 1;
                    if s.bias {
                        term = terms.intern(("bias".into(), Vec::new(), vec![term, all[next]]));
                        next += 1;
                    }
                    columns.push((s.width, term));
                }
                match epilogue {
                    Epilogue::None => vec![columns],
                    Epilogue::Residual => {
                        let product = terms.whole(&columns);
                        vec![vec![(width(0), terms.binary(BinaryKind::Add, product, all[next]))]]
                    }
                    Epilogue::Gated(function) => {
                        let gate = terms.unary((*function).into(), columns[0].1);
                        vec![vec![(width(0), terms.binary(BinaryKind::Mul, gate, columns[1].1))]]
                    }
                }
            }
            Op::Unary { kind } => vec![vec![(width(0), terms.unary(*kind, all[0]))]],
            Op::Binary { kind } => vec![vec![(width(0), terms.binary(*kind, all[0], all[1]))]],
            Op::Pointwise { body } => {
                let mut known = all;
                for s in body {
                    known.push(match *s {
                        Scalar::Unary(kind, a) => terms.unary(kind, known[a as usize]),
                        Scalar::Binary(kind, a, b) => {
                            terms.binary(kind, known[a as usize], known[b as usize])
                        }
                    });
                }
                vec![vec![(width(0), known[known.len() - 1])]]
            }
            Op::AddRmsNorm { eps } => {
                let sum = terms.binary(BinaryKind::Add, all[0], all[1]);
                let normed = terms.node(&Op::RmsNorm { eps: *eps }, vec![sum, all[2]]);
                vec![vec![(width(0), sum)], vec![(width(1), normed)]]
            }
            Op::RopeAppend { style, heads, kv_heads } => {
                let head_dim = width(0) / u64::from(*heads);
                let mut rest = &parts(0)[..];
                let mut part = |terms: &mut Terms, heads: u32| {
                    let columns = take(&mut rest, u64::from(heads) * head_dim);
                    terms.whole(&columns)
                };
                let (q, k, v) = (part(terms, *heads), part(terms, *kv_heads), part(terms, *kv_heads));
                assert!(rest.is_empty());
                let q = terms.node(&Op::Rope { style: *style, heads: *heads }, vec![q, all[1]]);
                let k = terms.node(&Op::Rope { style: *style, heads: *kv_heads }, vec![k, all[1]]);
                let state = terms.node(&Op::Append { kv_heads: *kv_heads }, vec![all[2], k, v]);
                vec![vec![(width(0), q)], vec![(0, state)]]
            }
            plain => vec![vec![(width(0), terms.node(plain, all))]],
        };
        for (i, columns) in results.into_iter().enumerate() {
            values.insert(node.result(i as u16), columns);
        }
    }
    panic!("a graph has an output");
}

fn as_stored(_: NodeId, rows: Rows) -> Vec<f32> {
    rows.values()
}

#[test]
fn bit_exact_passes_keep_the_expression_alone_and_together() {
    let context = Context {
        target: &TARGET,
        precision: PrecisionPolicy::Source,
        f32_activations: false,
        row_activations: false,
        refine: Refine::NONE,
    };
    for seed in 0..200 {
        let mut terms = Terms::default();
        let original = soup::graph(seed);
        let expected = expressions(&original, &mut terms, as_stored);
        for pass in PASSES.iter().filter(|p| p.effect == Effect::BitExact) {
            let mut graph = original.clone();
            apply(pass, &mut graph, &context).unwrap();
            assert_eq!(expressions(&graph, &mut terms, as_stored), expected, "seed {seed}: {}", pass.name);
        }
        let mut rng = soup::Rng::new(seed + 500);
        for _ in 0..4 {
            let disable = PASSES.iter().filter(|_| rng.one_in(3)).map(|p| p.name.to_string()).collect();
            let options = Options { disable, stop_after: None };
            let mut graph = original.clone();
            run(&mut graph, &context, &options).unwrap();
            assert_eq!(expressions(&graph, &mut terms, as_stored), expected, "seed {seed}: {options:?}");
        }
    }
}

/// Under every policy the whole pipeline changes nothing but the numbers of matrices, and those as the definition of the scheme says.
#[test]
fn precision_changes_matrices_once_and_nothing_else() {
    let policies = [
        PrecisionPolicy::F32,
        PrecisionPolicy::Bf16,
        PrecisionPolicy::Int8 { group: 0 },
        PrecisionPolicy::Int8 { group: 32 },
        PrecisionPolicy::Int4 { group: 16 },
        PrecisionPolicy::Int4 { group: 48 },
    ];
    for seed in 0..60 {
        let original = soup::graph(seed);
        for precision in policies {
            let mut terms = Terms::default();
            let scheme = precision.scheme().unwrap();
            let expected = expressions(&original, &mut terms, |node, rows| {
                let matrix = original.ty(node.into()).shape.len() == 2;
                let (n, k, same) = (rows.rows, rows.k, rows.scheme == scheme);
                let values = rows.values();
                if matrix && !same { quantise(&scheme, n, k, &values).values() } else { values }
            });
            let context = Context {
                target: &TARGET,
                precision,
                f32_activations: false,
                row_activations: false,
                refine: Refine::NONE,
            };
            let mut graph = original.clone();
            run(&mut graph, &context, &Options::default()).unwrap();
            assert_eq!(expressions(&graph, &mut terms, as_stored), expected, "seed {seed}: {precision}");
            for node in graph.all() {
                let ty = match graph.op(node) {
                    Op::Const { recipe } if recipe.shape.len() == 2 => graph.ty(node.into()),
                    _ => continue,
                };
                assert_eq!((ty.scheme(), ty.encoding.layout), (scheme, Layout::Panel), "seed {seed}");
            }
        }
    }
}
