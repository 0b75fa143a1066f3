//! Steps that are loop nests: bind the views, then generated code or the nest itself runs this thread's rows.

use super::Pass;
use crate::bind::BoundArg;
use crate::code::NestCode;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::nest::Interpreter;
use crate::pool::SharedBytes;
use crate::worker::Nests;
use bessemer_format::PanelLayout;
use bessemer_format::manifest::KvElem;
use bessemer_format::nest::MAX_VIEWS;
use bessemer_format::plan::{Home, Input};
use std::ops::Range;

/// Memory that a view of a nest is bound to.
#[derive(Clone, Copy)]
pub(crate) struct ViewBinding<'a> {
    /// The bytes, from the view's element 0.
    pub(crate) bytes: SharedBytes<'a>,
    /// The layout, for packed weights.
    pub(crate) panel: Option<&'a PanelLayout>,
}

/// A nest as a worker runs it.
pub(crate) enum BoundNest {
    Interpreted(Interpreter),
    Generated(NestCode),
}

impl BoundNest {
    /// Every nest of the engine's plan, for a cache of `kv` elements.
    pub(crate) fn all(engine: &Engine, kv: KvElem, nests: Nests) -> Result<Vec<Self>, EngineError> {
        let code = engine.code().filter(|_| nests == Nests::Auto);
        let bind = |(id, nest): (usize, &bessemer_format::nest::Nest)| match code
            .and_then(|code| code.nest(id, kv))
        {
            Some(code) => Ok(BoundNest::Generated(code)),
            None => Interpreter::new(nest, kv)
                .map(BoundNest::Interpreted)
                .map_err(|why| EngineError::Unsupported { step: nest.name.clone(), why }),
        };
        engine.plan().nests.iter().enumerate().map(bind).collect()
    }
}

impl Pass<'_> {
    /// Runs rows of a nest; where they are staged, its states are that memory.
    pub(super) fn nest(
        &self,
        nest: usize,
        rows: Range<usize>,
        args: &[BoundArg],
        staged: Option<SharedBytes<'_>>,
    ) -> Result<(), String> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut views = [ViewBinding { bytes: SharedBytes::read_only::<u8>(&[]), panel: None }; MAX_VIEWS];
        let views = &mut views[..args.len()];
        for (view, arg) in views.iter_mut().zip(args) {
            *view = match arg {
                BoundArg::Buffer(buffer) if staged.is_some() && buffer.home == Home::Input(Input::Slots) => {
                    ViewBinding { bytes: SharedBytes::read_only(&self.inputs.staged_slots), panel: None }
                }
                BoundArg::Buffer(buffer) => ViewBinding { bytes: self.buffer(buffer), panel: None },
                BoundArg::Weight(range, panel) => {
                    let bytes = SharedBytes::read_only(&self.file[range.clone()]);
                    ViewBinding { bytes, panel: panel.as_ref() }
                }
                BoundArg::State(id) => {
                    ViewBinding { bytes: staged.unwrap_or_else(|| self.state.state(*id)), panel: None }
                }
            };
        }
        match &self.nests[nest] {
            BoundNest::Interpreted(nest) => nest.run(rows, views, &self.syms),
            BoundNest::Generated(code) => code
                .run(rows, views, &self.syms)
                .map_err(|at| format!("the integer that statement {at} loads is out of bounds")),
        }
    }
}
