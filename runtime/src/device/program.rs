//! A program of the plan as a GPU runs it: launches bound to places in the device's memory.

use crate::exec::Inputs;
use bessemer_format::gpu::{GpuArg, GpuCode, Groups, PASS_NUMBERS};
use bessemer_format::plan::{BufferId, Cut, Home, Input, Plan, Program, RowCount, StateId, WeightId};

/// Words in front of the arrays: the numbers of the pass.
const HEAD: usize = PASS_NUMBERS.next_multiple_of(4);
/// Arrays with a number a row, in the order in which they lie. The block table follows them.
const ARRAYS: [Input; 10] = [
    Input::Tokens,
    Input::Positions,
    Input::Slots,
    Input::Sequences,
    Input::LogitRows,
    Input::TableStarts,
    Input::TokenTypes,
    Input::FirstRows,
    Input::LastPositions,
    Input::CarriedBlocks,
];

/// Where the arrays of a pass of up to `rows` rows lie, in words of 32 bits. Few of them are used by a pass of few rows.
#[derive(Clone, Copy)]
pub(super) struct InputLayout {
    rows: usize,
}

impl InputLayout {
    pub(super) fn new(rows: usize) -> Self {
        Self { rows: rows.next_multiple_of(4) }
    }

    fn at(&self, input: Input) -> usize {
        let array = ARRAYS.iter().position(|a| *a == input).unwrap_or(ARRAYS.len());
        HEAD + array * self.rows
    }

    /// Words in all, with tables of up to `stride` blocks for as many sequences as there are rows.
    pub(super) fn words(&self, stride: usize) -> usize {
        self.at(Input::BlockTable) + self.rows * stride
    }

    /// Fills `words` with the arrays of a pass over a cache of `blocks` blocks; gives how many there are.
    pub(super) fn fill(&self, words: &mut [i32], inputs: &Inputs, blocks: usize) -> usize {
        let [rows, wanted, sequences, stride] = inputs.syms();
        let numbers = [rows, wanted, sequences, stride, blocks as i64].map(|n| n as i32);
        words[..PASS_NUMBERS].copy_from_slice(&numbers);
        for input in ARRAYS {
            let (at, array) = (self.at(input), inputs.array(input));
            words[at..at + array.len()].copy_from_slice(array);
        }
        let (at, table) = (self.at(Input::BlockTable), inputs.array(Input::BlockTable));
        words[at..at + table.len()].copy_from_slice(table);
        at + table.len()
    }
}

/// Where a device has put things. A [`Places::Pointer`] is what its kernels take.
pub(super) trait Places {
    type Pointer;

    fn weight(&self, id: WeightId) -> Option<Self::Pointer>;
    /// Block 0 of a state.
    fn state(&self, id: StateId) -> Option<Self::Pointer>;
    /// `offset` bytes behind the begin of the activations.
    fn arena(&self, offset: u64) -> Self::Pointer;
    /// `offset` bytes behind the begin of the [inputs](InputLayout).
    fn inputs(&self, offset: u64) -> Self::Pointer;
    fn fault(&self) -> Self::Pointer;
    fn results(&self) -> Self::Pointer;
}

/// A program whose launches are complete but for the number of rows.
pub(super) struct DeviceProgram<P> {
    /// The most that it takes.
    pub(super) rows: usize,
    pub(super) layout: InputLayout,
    /// All steps of the plan's program. Those before `first` are another device's.
    steps: Vec<DeviceStep<P>>,
    first: usize,
    /// What the other device hands over.
    pub(super) live: Vec<DeviceOutput<P>>,
}

/// One step.
pub(super) struct DeviceStep<P> {
    /// The graph's node that it stands for.
    pub(super) source: String,
    pub(super) launches: Vec<DeviceLaunch<P>>,
    /// Activations that it writes.
    pub(super) outputs: Vec<DeviceOutput<P>>,
}

/// A launch of a kernel.
pub(super) struct DeviceLaunch<P> {
    pub(super) kernel: usize,
    pub(super) threads: u32,
    grid: [Groups; 3],
    pub(super) pointers: Vec<P>,
}

/// Activations.
pub(super) struct DeviceOutput<P> {
    pub(super) at: P,
    pub(super) rows: RowCount,
    pub(super) row_elems: usize,
}

impl<P> DeviceLaunch<P> {
    /// Workgroups for a pass; none run where one number is 0.
    pub(super) fn grid(&self, rows: usize, wanted: usize) -> Option<(u32, u32, u32)> {
        // The largest grid was checked when the engine was opened.
        let [x, y, z] = self.grid.map(|g| g.count(rows as u64, wanted as u64) as u32);
        (x > 0 && y > 0 && z > 0).then_some((x, y, z))
    }
}

impl<P> DeviceOutput<P> {
    /// Elements in a pass.
    pub(super) fn elems(&self, rows: usize, wanted: usize) -> usize {
        let count = if self.rows == RowCount::Tokens { rows } else { wanted };
        count * self.row_elems
    }
}

impl<P> DeviceProgram<P> {
    /// The steps that the device runs, with their numbers in the plan.
    pub(super) fn steps(&self) -> impl ExactSizeIterator<Item = (usize, &DeviceStep<P>)> {
        self.steps.iter().enumerate().skip(self.first)
    }

    /// Steps of the plan's program.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Binds program `index` of a plan, or what lies behind a cut of it.
    pub(super) fn bind(
        plan: &Plan,
        code: &GpuCode,
        index: usize,
        cut: Option<&Cut>,
        places: &dyn Places<Pointer = P>,
    ) -> Result<Self, String> {
        let program = plan.programs.get(index).ok_or("a program that does not exist")?;
        let launches = code.programs.get(index).ok_or("a program without launches")?;
        let layout = InputLayout::new(program.regime.max_rows as usize);
        let bind = Bind { program, layout, places };
        let first = cut.map_or(0, |cut| cut.step as usize);
        let live = cut.map_or(&[][..], |cut| &cut.live);
        let live = live.iter().map(|id| bind.output(*id)).collect::<Result<_, _>>()?;
        let mut steps = Vec::with_capacity(program.steps.len());
        for step in &program.steps {
            let outputs = crate::bind::outputs(plan, &step.kind);
            steps.push(DeviceStep {
                source: step.source.clone(),
                launches: Vec::new(),
                outputs: outputs.into_iter().map(|id| bind.output(id)).collect::<Result<_, _>>()?,
            });
        }
        for launch in launches.iter().filter(|launch| launch.step as usize >= first) {
            let kernel = code.kernels.get(launch.kernel as usize).ok_or("a kernel that does not exist")?;
            let pointers = launch.args.iter().map(|arg| bind.pointer(*arg)).collect::<Result<_, _>>()?;
            let step = steps.get_mut(launch.step as usize).ok_or("a launch of a step that does not exist")?;
            step.launches.push(DeviceLaunch {
                kernel: launch.kernel as usize,
                threads: kernel.threads,
                grid: launch.grid,
                pointers,
            });
        }
        Ok(Self { rows: program.regime.max_rows as usize, layout, steps, first, live })
    }
}

struct Bind<'a, P> {
    program: &'a Program,
    layout: InputLayout,
    places: &'a dyn Places<Pointer = P>,
}

impl<P> Bind<'_, P> {
    fn pointer(&self, arg: GpuArg) -> Result<P, String> {
        match arg {
            GpuArg::Buffer(id) => self.buffer(id),
            GpuArg::Weight(id) => {
                self.places.weight(id).ok_or_else(|| format!("weight {id} is not on the device"))
            }
            GpuArg::State(id) => self.places.state(id).ok_or_else(|| format!("state {id} does not exist")),
            GpuArg::Input(input) => Ok(self.input(input)),
            GpuArg::Pass => Ok(self.places.inputs(0)),
            GpuArg::Fault => Ok(self.places.fault()),
        }
    }

    fn buffer(&self, id: BufferId) -> Result<P, String> {
        let buffer =
            self.program.buffers.get(id as usize).ok_or_else(|| format!("buffer {id} does not exist"))?;
        Ok(match buffer.home {
            Home::Arena { offset } => self.places.arena(offset),
            Home::Input(input) => self.input(input),
            Home::Logits => self.places.results(),
        })
    }

    fn input(&self, input: Input) -> P {
        self.places.inputs(4 * self.layout.at(input) as u64)
    }

    fn output(&self, id: BufferId) -> Result<DeviceOutput<P>, String> {
        let at = self.buffer(id)?;
        let buffer = &self.program.buffers[id as usize];
        Ok(DeviceOutput { at, rows: buffer.rows, row_elems: buffer.row_elems as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_lie_behind_each_other_and_few_words_serve_few_rows() {
        let mut inputs = Inputs { table_stride: 3, block_table: vec![7, 8, 9], ..Inputs::default() };
        for (value, array) in
            [&mut inputs.tokens, &mut inputs.positions, &mut inputs.slots].into_iter().enumerate()
        {
            array.extend([value as i32 + 1; 2]);
        }
        inputs.logit_rows.push(1);
        let layout = InputLayout::new(2);
        let mut words = vec![0; layout.words(3)];
        let used = layout.fill(&mut words, &inputs, 5);
        assert_eq!(used, HEAD + ARRAYS.len() * 4 + 3);
        assert_eq!(words[..PASS_NUMBERS], [2, 1, 0, 3, 5]);
        assert_eq!(words[layout.at(Input::Slots)..][..3], [3, 3, 0]);
        assert_eq!(words[layout.at(Input::BlockTable)..used], [7, 8, 9]);
        assert!(words.len() >= used);
    }
}
