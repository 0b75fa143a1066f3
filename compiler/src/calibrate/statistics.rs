//! Statistics in a file: gathered once, used by every precision and method. An engine that was made from one names its hash.
//!
//! `MAGIC | version u32 | length of the header u64 | header | its hash | moments`, numbers little-endian, the header in the codec of
//! engines. The header has the hash of every moment, so its own hash is that of all content.

use super::{Calibrate, Ground, text};
use crate::compile::Progress;
use crate::error::CompileError;
use crate::import::{Checkpoint, arch};
use crate::options::{CompileOptions, RunOptions};
use crate::scratch;
use bessemer_calibrate::{Moment, Reach};
use bessemer_format::codec;
use bessemer_format::file::{Bytes, map_opened};
use bessemer_format::manifest::Hash;
use bessemer_ir::{Graph, NodeId, Op, Phase, Value};
use bessemer_passes::pipeline::{self, Context, Refine};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"BSMRSTAT";
const VERSION: u32 = 1;
/// Bytes before the header.
const PREFIX: usize = 20;

/// Why a file of statistics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no file of statistics.
    #[error("{path} is no file of statistics; make one with `bessemer calibrate`")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another version wrote it.
    #[error(
        "{path} has version {found}, this compiler reads {VERSION}; make it again with `bessemer calibrate`"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is not what was written.
    #[error("{path}: {what} is damaged; make it again with `bessemer calibrate`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: String,
    },
    /// It is of other weights.
    #[error(
        "{path} was gathered from the source {found}, this one is {expected}; make it again with `bessemer calibrate`"
    )]
    Source {
        /// The file.
        path: PathBuf,
        /// Hash of the source that it was gathered from.
        found: Hash,
        /// Hash of the source that is compiled.
        expected: Hash,
    },
    /// It has nothing of an input.
    #[error("{path} has nothing of the input of {weight}; make it again with `bessemer calibrate`")]
    Missing {
        /// The file.
        path: PathBuf,
        /// A weight that reads the input.
        weight: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    source: Hash,
    windows: Vec<Vec<u32>>,
    /// In the order of their names.
    entries: Vec<Entry>,
}

/// The moment of an input.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The first weight that reads it.
    weight: String,
    /// Where it lies behind the header.
    offset: u64,
    len: u64,
    hash: Hash,
}

/// An opened file of statistics.
pub struct Statistics {
    path: PathBuf,
    header: Header,
    hash: Hash,
    bytes: Bytes,
    /// Where moments begin.
    start: usize,
}

/// Files of equal content are equal, wherever they lie.
impl PartialEq for Statistics {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl std::fmt::Debug for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Statistics({})", self.hash)
    }
}

impl Statistics {
    /// Opens a file, and verifies its header. A moment is verified when it is read.
    pub fn open(path: &Path) -> Result<Self, StatisticsError> {
        let io = |source| StatisticsError::Io { path: path.into(), source };
        let kind = || StatisticsError::Kind { path: path.into() };
        let damaged = || StatisticsError::Damaged { path: path.into(), what: "its header".into() };
        let bytes = map_opened(&File::open(path).map_err(io)?).map_err(io)?;
        let (magic, rest) = bytes.split_first_chunk::<8>().filter(|(m, _)| *m == MAGIC).ok_or_else(kind)?;
        debug_assert_eq!(magic, MAGIC);
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let found = u32::from_le_bytes(*version);
        if found != VERSION {
            return Err(StatisticsError::Version { path: path.into(), found });
        }
        let (len, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| damaged())?;
        let (header, rest) = rest.split_at_checked(len).ok_or_else(damaged)?;
        let (hash, _) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
        if Hash::of(header).0 != *hash {
            return Err(damaged());
        }
        let header = codec::decode("statistics", header).map_err(|_| damaged())?;
        let start = PREFIX + len + 32;
        Ok(Self { path: path.into(), header, hash: Hash(*hash), start, bytes })
    }

    /// Of all content.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The text that it was gathered on.
    pub fn windows(&self) -> &[Vec<u32>] {
        &self.header.windows
    }

    /// Whether it was gathered from this source.
    pub(super) fn check(&self, source: Hash) -> Result<(), StatisticsError> {
        let (path, found) = (self.path.clone(), self.header.source);
        if found == source { Ok(()) } else { Err(StatisticsError::Source { path, found, expected: source }) }
    }

    /// The moment of the input that `weight` is the first to read.
    pub(super) fn moment(&self, weight: &str) -> Result<Moment, StatisticsError> {
        let entries = &self.header.entries;
        let entry = entries.binary_search_by(|e| e.weight.as_str().cmp(weight)).map(|at| &entries[at]);
        let missing = |_| StatisticsError::Missing { path: self.path.clone(), weight: weight.into() };
        let entry = entry.map_err(missing)?;
        let read = || {
            let from = self.start.checked_add(usize::try_from(entry.offset).ok()?)?;
            let body = self.bytes.get(from..from.checked_add(usize::try_from(entry.len).ok()?)?)?;
            (Hash::of(body) == entry.hash).then(|| Moment::decode(body))?
        };
        let what = format!("what it has of the input of {weight}");
        let damaged = || StatisticsError::Damaged { path: self.path.clone(), what };
        read().map(|(moment, _)| moment).ok_or_else(damaged)
    }
}

/// What was gathered into a file.
#[derive(Clone, Debug, Serialize)]
pub struct Gathered {
    /// Hash of its content.
    pub hash: String,
    /// Length of the file.
    pub bytes: u64,
    /// Tokens that it was gathered on.
    pub tokens: usize,
    /// Inputs of linears, in the order of names.
    pub inputs: Vec<Channels>,
}

/// How large the elements of an input are on average.
#[derive(Clone, Debug, Serialize)]
pub struct Channels {
    /// The first weight that reads it.
    pub weight: String,
    /// Elements.
    pub width: usize,
    /// The largest mean magnitude over the median one: what scaling by activations lives on.
    pub largest: f32,
    /// Elements whose mean magnitude is more than [`OUTLIER`] times the median one.
    pub outliers: usize,
}

/// From so many medians on a channel is an outlier.
pub const OUTLIER: f32 = 6.0;

impl Channels {
    fn new(weight: &str, moment: &Moment) -> Self {
        let mut sorted = moment.magnitudes.clone();
        sorted.sort_by(f32::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0).max(f32::MIN_POSITIVE);
        Self {
            weight: weight.into(),
            width: moment.k,
            largest: sorted.last().copied().unwrap_or(0.0) / median,
            outliers: sorted.iter().filter(|m| **m > OUTLIER * median).count(),
        }
    }
}

/// Gathers the statistics of a checkpoint on the text of `options` into the file `out`, which appears when it is whole. Until then results
/// are kept in the scratch, by default in a folder beside `out`, and an interrupted run goes on from there.
pub fn gather(
    checkpoint: &Checkpoint,
    out: &Path,
    options: &CompileOptions,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<Gathered, CompileError> {
    let mut graph = arch::detect(checkpoint)?.model(checkpoint, options.context)?.graph;
    let context = Context {
        target: options.targets.first(),
        precision: options.precision,
        f32_activations: options.f32_activations,
        row_activations: options.row_activations,
        refine: Refine::NONE,
    };
    let until = pipeline::Options { disable: options.disable.clone(), stop_after: Some(Phase::Canonical) };
    pipeline::run(&mut graph, &context, &until)?;

    let beside = beside(out);
    let own_scratch = run.scratch.is_none();
    let run = RunOptions { scratch: run.scratch.clone().or(Some(beside.clone())), ..run.clone() };
    let calibrate = Calibrate { checkpoint, options, run: &run, context, progress };
    let source = calibrate.source()?;
    let ground = calibrate.ground_on(&graph, source, Some(Reach::Whole))?;
    let gathered = write(out, &graph, source, &ground)?;
    if own_scratch {
        drop(ground);
        // A folder that stays costs no more than its bytes.
        let _ = std::fs::remove_dir_all(beside);
    }
    Ok(gathered)
}

/// Where results of a run that is not yet through lie.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    out.with_file_name(name)
}

fn write(out: &Path, graph: &Graph, source: Hash, ground: &Ground) -> Result<Gathered, CompileError> {
    let names = names(graph);
    let mut inputs: Vec<(&String, Value)> = names.iter().map(|(input, weight)| (weight, *input)).collect();
    inputs.sort();
    // Once for hashes and lengths, once to copy: none of it is held.
    let (mut entries, mut channels, mut offset) = (Vec::new(), Vec::new(), 0);
    for (weight, input) in &inputs {
        let result = ground.encoded(*input)?;
        let body = scratch::body(&result);
        let (len, hash) = (body.len() as u64, Hash::of(body));
        entries.push(Entry { weight: (*weight).clone(), offset, len, hash });
        channels.push(Channels::new(weight, &ground.moment(*input)?));
        offset += len;
    }
    let header = Header { source, windows: ground.windows.clone(), entries };
    let header = codec::encode(&header)?;
    let hash = Hash::of(&header);
    let io = |source| StatisticsError::Io { path: out.into(), source };
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let mut file = BufWriter::new(temp.as_file());
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(io);
    put(MAGIC)?;
    put(&VERSION.to_le_bytes())?;
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    put(&hash.0)?;
    for (_, input) in &inputs {
        put(scratch::body(&ground.encoded(*input)?))?;
    }
    file.flush().map_err(io)?;
    drop(file);
    temp.as_file().sync_all().map_err(io)?;
    temp.persist(out).map_err(|e| io(e.error))?;
    let tokens = ground.windows.iter().map(Vec::len).sum();
    let bytes = (PREFIX + header.len() + 32) as u64 + offset;
    Ok(Gathered { hash: hash.to_string(), bytes, tokens, inputs: channels })
}

/// Each input of a linear by the first weight that reads it: what stays the same where numbers of nodes do not.
pub(super) fn names(graph: &Graph) -> BTreeMap<Value, String> {
    let mut found = BTreeMap::new();
    for node in graph.order() {
        if let Some((input, weight)) = read_by(graph, node) {
            found.entry(input).or_insert_with(|| graph.name(weight).to_string());
        }
    }
    found
}

/// The input and the weight of a linear, or of one that is a stack.
pub(super) fn read_by(graph: &Graph, node: NodeId) -> Option<(Value, NodeId)> {
    let (Op::Linear { .. } | Op::GroupedLinear { .. }) = graph.op(node) else { return None };
    Some((*graph.operands(node).first()?, bessemer_passes::weights(graph, node).first()?.node))
}

/// For scratches: what results follow from.
pub(super) fn on(statistics: Option<&Statistics>, windows: &[Vec<u32>]) -> String {
    match statistics {
        Some(s) => format!("statistics {}", s.hash),
        None => text::hash_of(windows).to_string(),
    }
}
