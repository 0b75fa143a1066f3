//! Tables of tensors: what a family calls them in each container, and their shapes.

use super::error::ImportError;
use super::source::{Checkpoint, Metadata};
use super::tensors;

/// Whose tensor names a checkpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`, linears as `[out, in]` (or `[in, out]` where a family has `Conv1D`).
    HuggingFace,
    /// `blk.0.attn_q.weight`
    Gguf,
}

impl Naming {
    /// The naming of a checkpoint's container.
    pub fn of(checkpoint: &Checkpoint) -> Naming {
        match checkpoint.config() {
            Metadata::HuggingFace(_) => Naming::HuggingFace,
            Metadata::Gguf(_) => Naming::Gguf,
        }
    }
}

/// A tensor: its name in Hugging Face, its name in GGUF, its shape under the configuration.
pub type Row<C> = (&'static str, &'static str, fn(&C) -> Vec<usize>);

/// The tensors of a family. A tensor is asked for by its Hugging Face name, without what stands before it in a block.
pub struct Names<C: 'static> {
    /// What stands before the number of a block in Hugging Face; `blk.` in GGUF.
    pub blocks: &'static str,
    /// Tensors of the whole model.
    pub whole: &'static [Row<C>],
    /// Tensors of each block.
    pub block: &'static [Row<C>],
}

impl<C> Names<C> {
    /// The name of a tensor of the whole model.
    pub fn whole(&self, naming: Naming, hf: &str) -> String {
        let row = self.whole.iter().find(|row| row.0 == hf);
        Self::pick(row, naming, hf).to_owned()
    }

    /// The name of a tensor of a block.
    pub fn block(&self, naming: Naming, layer: usize, hf: &str) -> String {
        let name = Self::pick(self.block.iter().find(|row| row.0 == hf), naming, hf);
        match naming {
            Naming::HuggingFace => format!("{}{layer}.{name}", self.blocks),
            Naming::Gguf => format!("blk.{layer}.{name}"),
        }
    }

    fn pick(row: Option<&Row<C>>, naming: Naming, hf: &str) -> &'static str {
        match (row, naming) {
            (Some(row), Naming::HuggingFace) => row.0,
            (Some(row), Naming::Gguf) => row.1,
            (None, _) => unreachable!("`{hf}` has no row"),
        }
    }

    /// Holds the checkpoint against the table: the tensors that `has` names (by block and Hugging Face name), no others, in their shapes.
    /// `rename` turns a listed name into the checkpoint's.
    pub fn check(
        &self,
        checkpoint: &Checkpoint,
        config: &C,
        layers: usize,
        has: impl Fn(Option<usize>, &str) -> bool,
        rename: impl Fn(String) -> String,
        harmless: impl Fn(&str) -> bool,
    ) -> Result<(), ImportError> {
        let naming = Naming::of(checkpoint);
        let whole = self.whole.iter().filter(|row| has(None, row.0)).map(|row| (None, row));
        let blocks = (0..layers).flat_map(|layer| self.block.iter().map(move |row| (Some(layer), row)));
        let rows = whole.chain(blocks.filter(|(layer, row)| has(*layer, row.0)));
        let expected = rows.map(|(layer, row)| {
            let name = match layer {
                Some(layer) => self.block(naming, layer, row.0),
                None => self.whole(naming, row.0),
            };
            (rename(name), (row.2)(config))
        });
        // Only the first block may differ from the others.
        let count = |layer| self.block.iter().filter(|row| has(Some(layer), row.0)).count();
        let whole = self.whole.iter().filter(|row| has(None, row.0)).count();
        let count = whole + if layers == 0 { 0 } else { count(0) + (layers - 1) * count(1) };
        tensors::check(checkpoint, count, expected, harmless)
    }
}
